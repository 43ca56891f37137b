//! The prompt of `arrow-quant sql`: statements, and commands that begin with a backslash.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use crate::completion::Completions;
use crate::failure::Failure;
use crate::interrupt::ctrl_c;
use crate::output::{self, Format, Style};
use crate::prompt_commands::{COMMANDS, Command};
use crate::queries::Queries;
use crate::statements::execute;
use crate::table::{Table, terminal_width};

/// The prompt for a statement's first line.
const FIRST: &str = "arrow-quant> ";

/// The prompt for its other lines.
const NEXT: &str = "          -> ";

/// A user at a terminal.
pub(crate) struct Prompt {
    queries: Queries,
    format: Format,
    is_expanded: bool,
    has_timing: bool,
    editor: Editor<Completions, FileHistory>,
}

impl Prompt {
    /// A prompt for a session.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub(crate) fn new(queries: Queries, format: Format) -> Result<Self, Failure> {
        let config = Config::builder().completion_type(CompletionType::List).build();
        let editor = Editor::with_config(config).map_err(broken)?;
        Ok(Self { queries, format, is_expanded: false, has_timing: false, editor })
    }

    /// Reads statements and runs each, until the user leaves. An error is told, and the prompt goes on.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let history = history_file();
        if let Some(path) = &history {
            // The first time, the file does not exist.
            let _ = self.editor.load_history(path);
        }
        writeln!(io::stdout(), "end a statement with ;  \\? lists commands, \\q leaves")?;
        self.learn();
        let mut text = String::new();
        loop {
            match self.editor.readline(if text.is_empty() { FIRST } else { NEXT }) {
                Ok(line) if text.is_empty() && line.trim().is_empty() => {}
                Ok(line) => match Command::of(&line).filter(|_| text.is_empty()) {
                    Some(Command::Leave) => break,
                    Some(command) => {
                        let _ = self.editor.add_history_entry(line.trim_end());
                        if let Err(failure) = self.obey(&command) {
                            failure.print();
                        }
                    }
                    None => {
                        text.push_str(&line);
                        text.push('\n');
                        if is_complete(&text) {
                            let statement = std::mem::take(&mut text);
                            let _ = self.editor.add_history_entry(statement.trim_end());
                            self.execute(&statement);
                            self.learn();
                        }
                    }
                },
                Err(ReadlineError::Interrupted) => text.clear(),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(broken(error)),
            }
        }
        if let Some(path) = &history {
            // The prompt works without a history file.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = self.editor.save_history(path);
        }
        Ok(())
    }

    /// Learns the names that can be completed: statements make and drop tables.
    fn learn(&mut self) {
        let names = self.queries.wait(Completions::of(self.queries.ctx()));
        self.editor.set_helper(Some(names));
    }

    /// Does what a command says.
    fn obey(&mut self, command: &Command<'_>) -> Result<(), Failure> {
        let mut out = output::stdout();
        match command {
            Command::Help => {
                let widest = COMMANDS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
                for (name, does) in COMMANDS {
                    writeln!(out, "{name:<widest$}  {does}")?;
                }
            }
            Command::Describe(None) => list_tables(self.queries.ctx(), None, &mut out)?,
            Command::Describe(Some(name)) => self.describe(name, &mut out)?,
            Command::Functions(pattern) => {
                drop(out);
                let like =
                    pattern.map_or_else(String::new, |pattern| format!(" LIKE '{}'", pattern.replace('\'', "''")));
                self.execute(&format!("SHOW FUNCTIONS{like}"));
                return Ok(());
            }
            Command::Timing(value) => {
                self.has_timing = value.unwrap_or(!self.has_timing);
                writeln!(out, "timing is {}", on_or_off(self.has_timing))?;
            }
            Command::Expanded(value) => {
                self.is_expanded = value.unwrap_or(!self.is_expanded);
                writeln!(out, "expanded rows are {}", on_or_off(self.is_expanded))?;
            }
            Command::Refused(message) => return Err(Failure::Message(message.clone())),
            Command::Leave => {}
        }
        out.flush()?;
        Ok(())
    }

    /// Prints the columns of a table, or the tables of a schema.
    fn describe(&self, name: &str, out: &mut impl Write) -> Result<(), Failure> {
        let ctx = self.queries.ctx();
        // Names without quotes are found in letters of either case, as models are with them.
        let plain = name.replace('"', "");
        let lower = plain.to_lowercase();
        let is_schema = |catalog: &String| ctx.catalog(catalog).is_some_and(|catalog| catalog.schema(&lower).is_some());
        if ctx.catalog_names().iter().any(is_schema) {
            return list_tables(ctx, Some(&lower), out);
        }
        let found = [plain.as_str(), lower.as_str()].into_iter().find_map(|name| {
            let table = match name.rsplit_once('.') {
                Some((schema, table)) => TableReference::partial(schema, table),
                None => TableReference::bare(name),
            };
            self.queries.wait(ctx.table_provider(table)).ok()
        });
        let Some(provider) = found else {
            let message = format!("there is no table or schema '{name}'; \\d lists the tables");
            return Err(Failure::Message(message));
        };
        let mut table = Table::new().text("column").text("type").text("nullable");
        for field in provider.schema().fields() {
            let nullable = if field.is_nullable() { "yes" } else { "no" };
            table.row([field.name().clone(), field.data_type().to_string(), nullable.to_string()]);
        }
        Ok(table.write(out)?)
    }

    /// Runs statements until they end or Ctrl-C cancels them, and tells an error.
    fn execute(&self, text: &str) {
        let style = Style { format: self.format, is_expanded: self.is_expanded, width: terminal_width() };
        let started = Instant::now();
        // SIGTERM ends the prompt by itself.
        let interrupted = async {
            ctrl_c().await;
            130
        };
        let mut out = BufWriter::new(io::stdout());
        let result = self.queries.until(interrupted, execute(&self.queries, text, style, &mut out));
        // Rows that were cancelled come before the word that they were.
        drop(out);
        if let Err(failure) = result {
            failure.print();
        }
        if self.has_timing {
            // Nobody is left to hear that standard output is closed.
            let _ = writeln!(io::stdout(), "time: {:.3} s", started.elapsed().as_secs_f64());
        }
    }
}

fn broken(error: ReadlineError) -> Failure {
    Failure::Message(format!("cannot read from the terminal: {error}"))
}

fn on_or_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
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

/// Prints every table of every schema, or of one.
fn list_tables(ctx: &SessionContext, only: Option<&str>, out: &mut impl Write) -> Result<(), Failure> {
    let mut names = Vec::new();
    for catalog in ctx.catalog_names().iter().filter_map(|name| ctx.catalog(name)) {
        let is_listed = |name: &String| only.map_or(name != "information_schema", |only| only == name);
        for schema_name in catalog.schema_names().into_iter().filter(is_listed) {
            let tables = catalog.schema(&schema_name).map(|schema| schema.table_names()).unwrap_or_default();
            names.extend(tables.into_iter().map(|table| [schema_name.clone(), table]));
        }
    }
    if names.is_empty() {
        writeln!(out, "no tables; start with --model NAME=PATH, or query weights('path'), tensors('path')")?;
    } else {
        names.sort();
        let mut table = Table::new().text("schema").text("table");
        names.into_iter().for_each(|name| table.row(name));
        table.write(out)?;
    }
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
}
