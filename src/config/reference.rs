//! Documents and type hints that have the table of fields in them are up to date with it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::Literals;

/// The text of a file between two marks must be this. With `UPDATE_DOCS=1` in the environment, writes it instead.
fn is_up_to_date(file: &str, begin: &str, end: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{file} has lost {begin:?}"));
    let end = rest.find(end).unwrap_or_else(|| panic!("{file} has lost {end:?}"));
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, format!("{before}{begin}{expected}{}", &rest[end..])).unwrap();
        return;
    }
    assert!(&rest[..end] == expected, "{file} is stale: run UPDATE_DOCS=1 cargo test config::reference");
}

/// A value as YAML has it.
fn yaml(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// A field's default in every profile.
fn defaults(field: &Field<DiffusionQuantConfig>) -> [String; 3] {
    DeploymentProfile::ALL.map(|(profile, _)| yaml(&field.get(&DiffusionQuantConfig::from_profile(profile))))
}

/// Whether the profiles have different defaults.
fn is_of_profile(field: &Field<DiffusionQuantConfig>) -> bool {
    let [edge, local, cloud] = defaults(field);
    field.name != "deployment_profile" && (edge != local || local != cloud)
}

/// A flag with what its value is called, unless that says no more than what is allowed.
fn flag(field: &Field<DiffusionQuantConfig>) -> String {
    let hint = field.hint.filter(|_| matches!(field.shape, Shape::Names | Shape::Texts | Shape::Mapping));
    format!("`--{}{}`", field.flag(), hint.map_or_else(String::new, |hint| format!(" {hint}")))
}

#[test]
fn configuration_page_has_every_field() {
    let mut table = "\n| field | edge | local (default) | cloud |\n|---|---|---|---|\n".to_string();
    for field in FIELDS.iter().filter(|field| is_of_profile(field)) {
        writeln!(table, "| `{}` | {} |", field.name, defaults(field).join(" | ")).unwrap();
    }
    let page = "docs/configuration.md";
    is_up_to_date(page, "<!-- begin profiles -->\n", "\n<!-- end profiles -->", &table);
    let mut table = "\n| field | meaning | allowed | variable | flag |\n|---|---|---|---|---|\n".to_string();
    for field in FIELDS {
        let variable = field.variable.map_or("–".to_string(), |variable| format!("`{variable}`"));
        let (help, flag, allowed) = (field.help(), flag(field), field.allowed.spelled(Literals::Yaml));
        writeln!(table, "| `{}` | {help} | {allowed} | {variable} | {flag} |", field.name).unwrap();
    }
    is_up_to_date(page, "<!-- begin fields -->\n", "\n<!-- end fields -->", &table);
}

/// A text in lines that are not longer than 120 characters, each behind a prefix.
fn wrapped(text: &str, prefix: &str) -> String {
    let mut lines = String::new();
    let mut width = usize::MAX;
    for word in text.split_whitespace() {
        let length = word.chars().count() + 1;
        if width.saturating_add(length) > 120 {
            lines.push_str(if lines.is_empty() { "" } else { "\n" });
            lines.push_str(prefix);
            lines.push_str(word);
            width = prefix.chars().count() + length - 1;
        } else {
            lines.push(' ');
            lines.push_str(word);
            width += length;
        }
    }
    lines
}

#[test]
fn example_has_every_field_with_its_default() {
    let mut example = String::new();
    for field in FIELDS {
        let help = field.help().replace('`', "");
        let such_as = field.example.map_or_else(String::new, |example| format!("\n# example: {example}"));
        let [edge, local, cloud] = defaults(field);
        let default = if is_of_profile(field) {
            format!("edge {edge}, local {local}, cloud {cloud}")
        } else {
            format!("default {local}")
        };
        let variable = field.variable.map_or_else(String::new, |variable| format!("; {variable}"));
        let allowed = field.allowed.spelled(Literals::Yaml);
        let facts = format!("# allowed: {allowed}; {default}{variable}{such_as}");
        writeln!(example, "{}\n{facts}\n{}: {local}\n", wrapped(&help, "# "), field.name).unwrap();
    }
    let end = "# docs/configuration.md has more on all of them.";
    is_up_to_date("config.example.yaml", "docs/configuration.md says more.\n\n", end, &example);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.yaml");
    assert_eq!(DiffusionQuantConfig::from_yaml(path).unwrap(), DiffusionQuantConfig::default());
}

#[test]
fn examples_are_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yaml");
    for field in FIELDS {
        let speaks_of_null = matches!(field.allowed, Allowed::Words { null: Some(_), .. });
        assert_eq!(speaks_of_null, field.is_nullable, "{}", field.name);
    }
    for (field, example) in FIELDS.iter().filter_map(|field| Some((field, field.example?))) {
        fs::write(&path, format!("{}: {example}", field.name)).unwrap();
        let config = DiffusionQuantConfig::from_yaml(&path).unwrap();
        assert_ne!(field.get(&config), field.get(&DiffusionQuantConfig::default()), "{}", field.name);
    }
}

/// The types of a field in Python: when it is read, and when it is written.
fn python_types(field: &Field<DiffusionQuantConfig>) -> [String; 2] {
    let literal = |choices: fn() -> Vec<Value>| {
        let choices: Vec<_> = choices().iter().map(Value::to_string).collect();
        format!("Literal[{}]", choices.join(", "))
    };
    let [read, written] = match field.shape {
        Shape::Switch => ["bool".to_string(), "bool".to_string()],
        // Type checkers infer no literals in `for bits in (2, 4, 8)`.
        Shape::Choice(choices) if choices().iter().all(Value::is_number) => [literal(choices), "int".to_string()],
        // Of many names a line of code has no room for.
        Shape::Choice(choices) if literal(choices).len() > 80 => ["str".to_string(), "str".to_string()],
        Shape::Choice(choices) => [literal(choices), "str".to_string()],
        Shape::Whole => ["int".to_string(), "int".to_string()],
        Shape::Real => ["float".to_string(), "float".to_string()],
        Shape::Text => ["str".to_string(), "str".to_string()],
        Shape::Names | Shape::Texts => ["tuple[str, ...]".to_string(), "Sequence[str]".to_string()],
        Shape::Mapping => ["MappingProxyType[str, _WidthOrKept]".to_string(), "Mapping[str, int | str]".to_string()],
    };
    [read, written].map(|python| if field.is_nullable { format!("{python} | None") } else { python })
}

#[test]
fn python_stub_has_every_field() {
    let (mut arguments, mut properties) = (String::new(), String::new());
    for field in FIELDS {
        let name = field.name;
        let [read, written] = python_types(field);
        let default = if name == "deployment_profile" { "\"local\"" } else { "..." };
        writeln!(arguments, "        {name}: {written} = {default},").unwrap();
        let documentation = wrapped(&format!("\"\"\"{}\"\"\"", field.docstring()), "        ");
        writeln!(properties, "    @property\n    def {name}(self) -> {read}:\n{documentation}").unwrap();
        writeln!(properties, "    @{name}.setter\n    def {name}(self, value: {written}) -> None: ...").unwrap();
    }
    let stub = "python/arrow_quant_v2/_native.pyi";
    is_up_to_date(stub, "        cls,\n        *,\n        # Every field.\n", "    ) -> Self:", &arguments);
    is_up_to_date(stub, "    # A property for every field.\n", "    def __eq__", &properties);
}
