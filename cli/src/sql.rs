//! `arrow-quant sql`: statements over models, from the command line, standard input or a prompt.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use arrow_quant_v2::{register_model, session};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::failure::Failure;
use crate::interrupt::{ctrl_c, signal};
use crate::named_model::NamedModel;
use crate::output::{self, Format};
use crate::queries::Queries;
use crate::table::Table;

/// The prompt for a statement's first line.
const FIRST: &str = "arrow-quant> ";

/// The prompt for its other lines.
const NEXT: &str = "          -> ";

/// Arguments of `arrow-quant sql`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Statements, separated by `;`; without them, standard input is read, on a terminal at a prompt
    query: Option<String>,
    /// A model to query as the schema NAME with the tables tensors, weights and, if quantized, quantized
    #[arg(long = "model", value_name = "NAME=PATH")]
    models: Vec<NamedModel>,
    /// How to print rows
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Opens the models and runs the statements.
pub(crate) fn run(arguments: &Arguments, threads: usize) -> Result<(), Failure> {
    let queries = Queries::new(session(threads)?, threads)?;
    for (index, NamedModel { name, path }) in arguments.models.iter().enumerate() {
        if arguments.models[..index].iter().any(|other| other.name == *name) {
            let path = path.display();
            return Err(Failure::Message(format!("--model {name}={path}: another model has the name '{name}'")));
        }
        queries.wait(register_model(queries.ctx(), name, path))?;
    }
    let text = match &arguments.query {
        Some(query) => query.clone(),
        None if io::stdin().is_terminal() => return prompt(&queries, arguments.format),
        None => io::read_to_string(io::stdin())
            .map_err(|error| Failure::Message(format!("cannot read standard input: {error}")))?,
    };
    queries.until(signal(), execute(&queries, &text, arguments.format))
}

/// Runs every statement of `text` and prints its rows. None is run if one cannot be parsed.
async fn execute(queries: &Queries, text: &str, format: Format) -> Result<(), Failure> {
    let statements = queries.parse(text).await?;
    if statements.is_empty() {
        return Err(Failure::Message("there is no statement to run".to_string()));
    }
    let mut out = output::stdout();
    for (index, statement) in statements.into_iter().enumerate() {
        if index > 0 && format == Format::Table {
            writeln!(out)?;
        }
        output::write_rows(queries.rows(statement).await?, format, &mut out).await?;
    }
    out.flush()?;
    Ok(())
}

/// Reads statements at a prompt and runs each, until the user leaves. An error is told, and the prompt goes on.
fn prompt(queries: &Queries, format: Format) -> Result<(), Failure> {
    let broken = |error: ReadlineError| Failure::Message(format!("cannot read from the terminal: {error}"));
    let mut editor = DefaultEditor::new().map_err(broken)?;
    let history = history_file();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    writeln!(io::stdout(), "end a statement with ;  \\d lists tables, \\q leaves")?;
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { FIRST } else { NEXT }) {
            Ok(line) if text.is_empty() && line.trim().is_empty() => {}
            Ok(line) if text.is_empty() && is_leave(&line) => break,
            Ok(line) if text.is_empty() && line.trim() == "\\d" => list_tables(queries.ctx())?,
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
                if is_complete(&text) {
                    let statement = std::mem::take(&mut text);
                    let _ = editor.add_history_entry(statement.trim_end());
                    run_at_prompt(queries, &statement, format);
                }
            }
            Err(ReadlineError::Interrupted) => text.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(broken(error)),
        }
    }
    if let Some(path) = &history {
        // A history that cannot be kept is no reason to fail.
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = editor.save_history(path);
    }
    Ok(())
}

/// Runs statements until they end or Ctrl-C cancels them, and tells an error.
fn run_at_prompt(queries: &Queries, text: &str, format: Format) {
    // SIGTERM ends the prompt by itself.
    let interrupted = async {
        ctrl_c().await;
        130
    };
    if let Err(failure) = queries.until(interrupted, execute(queries, text, format)) {
        failure.print();
    }
}

/// Whether a line says that the user leaves.
fn is_leave(line: &str) -> bool {
    matches!(line.trim().trim_end_matches(';').trim_end(), "\\q" | "quit" | "exit")
}

/// Whether `text` ends with a `;` that is in no string, quoted name or comment. What cannot become a statement by more
/// text is complete as well: the parser says what is wrong with it.
fn is_complete(text: &str) -> bool {
    match Tokenizer::new(&GenericDialect {}, text).tokenize() {
        Ok(tokens) => {
            let last = tokens.iter().rev().find(|token| !matches!(token, Token::Whitespace(_)));
            matches!(last, Some(Token::SemiColon))
        }
        Err(error) => {
            // By its text, since an error of the tokenizer has a message and no kind.
            let error = error.to_string();
            !["Unterminated", "before EOF", "Unexpected EOF"].iter().any(|open| error.contains(open))
        }
    }
}

/// Prints every table of every schema.
fn list_tables(ctx: &SessionContext) -> Result<(), Failure> {
    let mut names = Vec::new();
    for catalog in ctx.catalog_names().iter().filter_map(|name| ctx.catalog(name)) {
        for schema_name in catalog.schema_names().into_iter().filter(|name| name != "information_schema") {
            let tables = catalog.schema(&schema_name).map(|schema| schema.table_names()).unwrap_or_default();
            names.extend(tables.into_iter().map(|table| [schema_name.clone(), table]));
        }
    }
    let mut out = output::stdout();
    if names.is_empty() {
        writeln!(out, "no tables; start with --model NAME=PATH, or query weights('path'), tensors('path')")?;
    } else {
        names.sort();
        let mut table = Table::new().text("schema").text("table");
        names.into_iter().for_each(|name| table.row(name));
        table.write(&mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// Where statements typed at the prompt are kept: in the user's data directory, if there is one.
fn history_file() -> Option<PathBuf> {
    let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME")?;
    let data = set("XDG_DATA_HOME").filter(|path| path.is_absolute()).unwrap_or_else(|| home.join(".local/share"));
    Some(data.join("arrow-quant").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_with_a_semicolon_outside_of_strings() {
        for complete in ["SELECT 1;", "SELECT ';' ; -- done\n", "SELECT 1; SELECT 2;\n"] {
            assert!(is_complete(complete), "{complete}");
        }
        for open in ["SELECT 1", "SELECT ';", "SELECT \";", "SELECT 1 -- ;", "SELECT 1 /* ;", "SELECT 1; SELECT 2"] {
            assert!(!is_complete(open), "{open}");
        }
    }

    #[test]
    fn words_that_leave() {
        for word in ["\\q", "quit", "exit", " exit; "] {
            assert!(is_leave(word), "{word}");
        }
        assert!(!is_leave("exit x"));
    }
}
