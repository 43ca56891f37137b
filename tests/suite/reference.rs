//! `docs/sql.md` is up to date with the documentation beside each function.

use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sql.md");
const BEGIN: &str = "<!-- begin functions -->\n";
const END: &str = "<!-- end functions -->";

/// With `UPDATE_DOCS=1` in the environment, writes the page instead.
#[test]
fn the_sql_page_has_the_functions_own_documentation() {
    let found = fs::read_to_string(PAGE).unwrap();
    let parts = found.split_once(BEGIN).and_then(|(preface, rest)| Some((preface, rest.split_once(END)?.1)));
    let (preface, rest) = parts.unwrap_or_else(|| panic!("{PAGE} has lost its markers {BEGIN:?} and {END:?}"));
    let expected = format!("{preface}{BEGIN}\n{}\n\n{END}{rest}", arrow_quant_udfs::sql_reference().trim());
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(PAGE, expected).unwrap();
        return;
    }
    assert!(found == expected, "docs/sql.md is stale: run UPDATE_DOCS=1 cargo test --test suite reference");
}

#[test]
fn every_function_is_documented_with_an_example() {
    let scalars = arrow_quant_udfs::scalar_functions();
    let aggregates = arrow_quant_udfs::aggregate_functions();
    let documented = scalars
        .iter()
        .map(|f| (f.name(), f.documentation()))
        .chain(aggregates.iter().map(|f| (f.name(), f.documentation())));
    for (name, documentation) in documented {
        let documentation = documentation.unwrap_or_else(|| panic!("{name} has no documentation"));
        assert!(documentation.sql_example.as_ref().is_some_and(|example| example.contains(name)), "{name}");
        assert!(documentation.arguments.as_ref().is_some_and(|arguments| !arguments.is_empty()), "{name}");
    }
}
