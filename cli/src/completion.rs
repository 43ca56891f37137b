//! Completion at the prompt: commands, keywords, tables, columns and functions.

use std::collections::{BTreeSet, HashMap};

use datafusion::common::utils::quote_identifier;
use datafusion::prelude::SessionContext;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use crate::prompt_commands::COMMANDS;

/// The keywords that statements over models have.
const KEYWORDS: [&str; 40] = [
    "AND", "AS", "ASC", "BETWEEN", "BY", "CASE", "CAST", "COPY", "COUNT", "CREATE", "DESC", "DESCRIBE", "DISTINCT",
    "ELSE", "END", "EXPLAIN", "EXTERNAL", "FILTER", "FROM", "GROUP", "HAVING", "IN", "INSERT", "INTO", "IS", "JOIN",
    "LEFT", "LIKE", "LIMIT", "NOT", "NULL", "OR", "ORDER", "SELECT", "SHOW", "TABLE", "UNION", "VALUES", "WHERE",
    "WITH",
];

/// Names that a word at the prompt can become.
#[derive(Debug, Default)]
pub(crate) struct Completions {
    /// Tables with their schemas, functions, keywords.
    words: BTreeSet<String>,
    /// Columns of all tables: aliases hide which table a column is of.
    columns: BTreeSet<String>,
    schemas: BTreeSet<String>,
    /// The names that must be quoted, as statements have them.
    quoted: HashMap<String, String>,
}

impl Completions {
    /// The names that a session has now.
    pub(crate) async fn of(ctx: &SessionContext) -> Self {
        let mut names = Self { words: KEYWORDS.map(str::to_string).into(), ..Self::default() };
        for catalog in ctx.catalog_names().iter().filter_map(|name| ctx.catalog(name)) {
            for schema_name in catalog.schema_names() {
                let Some(schema) = catalog.schema(&schema_name) else { continue };
                names.schemas.insert(schema_name.clone());
                for table in schema.table_names() {
                    names.add_table(&[&schema_name, &table]);
                    names.add_table(&[&table]);
                    // A table that cannot be opened has no columns to offer; a query that names it says why.
                    if let Ok(Some(provider)) = schema.table(&table).await {
                        names.columns.extend(provider.schema().fields().iter().map(|field| field.name().clone()));
                    }
                }
            }
        }
        let state = ctx.state();
        names.words.extend(state.scalar_functions().keys().cloned());
        names.words.extend(state.aggregate_functions().keys().cloned());
        names.words.extend(state.window_functions().keys().cloned());
        names.words.extend(state.table_functions().keys().cloned());
        names
    }

    fn add_table(&mut self, parts: &[&str]) {
        let (name, written) = (parts.join("."), parts.iter().map(|part| quote_identifier(part)).collect::<Vec<_>>());
        let written = written.join(".");
        if written != name {
            self.quoted.insert(name.clone(), written);
        }
        self.words.insert(name);
    }

    /// Where the word before the cursor begins, and what it can become.
    fn candidates(&self, before: &str) -> (usize, Vec<String>) {
        if before.starts_with('\\') && !before.contains(' ') {
            let names = COMMANDS.iter().filter_map(|(name, _)| name.split(' ').next());
            let found: BTreeSet<&str> = names.filter(|name| name.starts_with(before)).collect();
            return (0, found.into_iter().map(str::to_string).collect());
        }
        let start = name_start(before);
        let (typed, word) = (&before[start..], before[start..].replace('"', ""));
        if word.is_empty() {
            return (start, Vec::new());
        }
        let starts = |name: &str, with: &str| {
            name.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with))
        };
        let names = self.words.iter().chain(&self.columns).filter(|name| starts(name, &word));
        let mut found: Vec<String> = names.map(|name| self.quoted.get(name).unwrap_or(name)).cloned().collect();
        // Behind an alias or a table, a column.
        let is_schema = |name: &str| self.schemas.contains(&name.to_lowercase());
        if let Some((table, column)) = typed.rsplit_once('.').filter(|(table, _)| !is_schema(&table.replace('"', ""))) {
            found.extend(self.columns.iter().filter(|name| starts(name, column)).map(|name| format!("{table}.{name}")));
        }
        found.sort_unstable();
        found.dedup();
        (start, found)
    }
}

/// Where the name at the end of a line begins: parts with dots between them, in quotes or without. The last may be empty, and its
/// quote open.
fn name_start(before: &str) -> usize {
    let is_open = before.matches('"').count() % 2 == 1;
    let mut start = if is_open { before.rfind('"').unwrap_or(before.len()) } else { part_start(before) };
    while let Some(rest) = before[..start].strip_suffix('.') {
        start = part_start(rest);
    }
    start
}

/// Where the last part of a name begins.
fn part_start(text: &str) -> usize {
    if let Some(rest) = text.strip_suffix('"') {
        return rest.rfind('"').unwrap_or(text.len());
    }
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.char_indices().rev().take_while(|(_, c)| is_of_word(*c)).last().map_or(text.len(), |(at, _)| at)
}

impl Completer for Completions {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(&line[..pos]))
    }
}

impl Hinter for Completions {
    type Hint = String;
}

impl Highlighter for Completions {}

impl Validator for Completions {}

impl Helper for Completions {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tables_columns_functions_and_commands_are_completed() {
        let ctx = arrow_quant_v2::session(1).unwrap();
        ctx.sql("CREATE TABLE layers AS SELECT 1 AS layer_index").await.unwrap().collect().await.unwrap();
        let names = Completions::of(&ctx).await;
        let all = |before: &str| names.candidates(before);
        let has = |before: &str, expected: &str| {
            let (_, found) = names.candidates(before);
            assert!(found.iter().any(|name| name == expected), "{before}: {found:?}");
        };
        has("SELECT * FROM lay", "layers");
        has("SELECT * FROM public.l", "public.layers");
        has("SELECT layer_", "layer_index");
        has("SELECT l.lay", "l.layer_index");
        has("SELECT sqnr", "sqnr_agg");
        has("SELECT * FROM weig", "weights");
        has("sel", "SELECT");
        assert_eq!(all("SELECT * FROM public.l"), (14, vec!["public.layers".to_string()]));
        assert_eq!(all("SELECT dequant").0, 7);
        assert_eq!(all("\\ti"), (0, vec!["\\timing".to_string()]));
        assert_eq!(all("SELECT ").1, Vec::<String>::new());
    }

    #[tokio::test]
    async fn names_that_must_be_quoted_are() {
        let ctx = arrow_quant_v2::session(1).unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/digits-dit");
        arrow_quant_v2::register_model(&ctx, "My-Model", model).await.unwrap();
        let names = Completions::of(&ctx).await;
        let tables = ["\"my-model\".tensors", "\"my-model\".weights"].map(str::to_string);
        for before in ["my", "\"my", "\"my-mo", "\"My-Model\"", "\"My-Model\"."] {
            assert_eq!(names.candidates(before), (0, tables.to_vec()), "{before}");
        }
        assert_eq!(names.candidates("SELECT \"x\" FROM \"my-model\".t"), (16, tables[..1].to_vec()));
    }
}
