//! `arrow-quant sql`: statements over models, from the command line, standard input or a prompt.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use arrow_quant_v2::{QuantError, register_copy, register_model, session};

use crate::failure::Failure;
use crate::interrupt::signal;
use crate::named_model::NamedModel;
use crate::output::{Format, Style};
use crate::prompt::Prompt;
use crate::queries::Queries;
use crate::statements::execute;
use crate::table::terminal_width;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant sql --model m=dream-7b \"SELECT tensor, dtype, shape FROM m.tensors\"
  arrow-quant sql --model m=dream-7b                              a prompt; \\? lists its commands
  arrow-quant sql -f queries.sql --format parquet -o result.parquet
  echo \"SELECT count(*) FROM tensors('dream-7b')\" | arrow-quant sql --format json";

/// Arguments of `arrow-quant sql`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Statements, separated by `;`; without them, standard input is read, on a terminal at a prompt
    query: Option<String>,
    /// Read the statements from this file; - is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "query")]
    file: Option<PathBuf>,
    /// A model to query as the schema NAME with the tables tensors, weights and, if quantized, quantized; may be given more
    /// than once
    #[arg(long = "model", value_name = "NAME=PATH")]
    models: Vec<NamedModel>,
    /// How to print rows [default: what the name of --output says, or else table]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the rows into this file, which is replaced when all statements have succeeded
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Opens the models and runs the statements.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let format = arguments.format.or_else(|| Format::of_name(arguments.output.as_deref()?)).unwrap_or_default();
    if format == Format::Parquet && arguments.output.is_none() && io::stdout().is_terminal() {
        let message = "--format parquet is not for a terminal: add --output FILE, or redirect the output";
        return Err(Failure::Usage(message.to_string()));
    }
    let ctx = session(threads)?;
    register_copy(&ctx)?;
    let queries = Queries::new(ctx, threads)?;
    for (index, NamedModel { name, path }) in arguments.models.iter().enumerate() {
        if arguments.models[..index].iter().any(|other| other.name == *name) {
            let path = path.display();
            return Err(Failure::Message(format!("--model {name}={path}: another model has the name '{name}'")));
        }
        queries.wait(register_model(queries.ctx(), name, path))?;
    }
    let text = match (&arguments.query, &arguments.file) {
        (Some(query), _) => query.clone(),
        (None, Some(path)) if path.as_os_str() != "-" => {
            std::fs::read_to_string(path).map_err(|source| QuantError::Io { path: path.clone(), source })?
        }
        (None, None) if io::stdin().is_terminal() && arguments.output.is_none() => {
            return Prompt::new(queries, format)?.run();
        }
        (None, _) => io::read_to_string(io::stdin())
            .map_err(|error| Failure::Message(format!("cannot read standard input: {error}")))?,
    };
    match &arguments.output {
        Some(path) => into_file(path, |file| {
            let style = Style { format, ..Style::default() };
            queries.until(signal(), execute(&queries, &text, style, file))
        }),
        None => {
            let style = Style { format, width: terminal_width(), ..Style::default() };
            queries.until(signal(), execute(&queries, &text, style, &mut BufWriter::new(io::stdout())))
        }
    }
}

/// Writes a file through another beside it, so that a statement that fails leaves the file as it was.
fn into_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Failure::from(QuantError::Io { path, source })
    };
    // A device or a pipe is written as it is.
    let is_special = std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    let mut staged = path.as_os_str().to_owned();
    staged.push(".partial");
    let staged = if is_special { path.to_path_buf() } else { PathBuf::from(staged) };
    let mut file = BufWriter::new(File::create(&staged).map_err(failed(&staged))?);
    let written = write(&mut file).map_err(|failure| match failure {
        Failure::Output(source) => QuantError::Io { path: path.to_path_buf(), source }.into(),
        other => other,
    });
    let written = written.and_then(|()| file.flush().map_err(failed(&staged)));
    if is_special {
        return written;
    }
    let ended = written.and_then(|()| std::fs::rename(&staged, path).map_err(failed(path)));
    if ended.is_err() {
        // What is told is why it failed.
        let _ = std::fs::remove_file(&staged);
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_when_all_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        std::fs::write(&path, "old").unwrap();
        let failed = into_file(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(Failure::Message("no".to_string()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        into_file(&path, |file| Ok(file.write_all(b"new")?)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = into_file(&directory.path().join("none/rows.csv"), |_| Ok(()));
        assert!(nowhere.unwrap_err().to_string().contains("no such file or directory"));
    }
}
