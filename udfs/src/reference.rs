//! The reference page, rendered from the documentation beside each function.

use std::fmt::Write;

use datafusion::logical_expr::Documentation;

/// A section of Markdown for every function: syntax, description, arguments, example.
pub fn sql_reference() -> String {
    let mut page = String::new();
    let scalars = crate::scalar_functions();
    let aggregates = crate::aggregate_functions();
    let all = scalars
        .iter()
        .map(|f| (f.name().to_string(), f.documentation()))
        .chain(aggregates.iter().map(|f| (f.name().to_string(), f.documentation())));
    for (name, documentation) in all {
        if let Some(documentation) = documentation {
            section(&mut page, &name, documentation);
        }
    }
    page
}

fn section(page: &mut String, name: &str, documentation: &Documentation) {
    // Writing to a String does not fail.
    let _ = writeln!(page, "### {name}\n\n`{}`\n\n{}\n", documentation.syntax_example, documentation.description);
    for (argument, meaning) in documentation.arguments.iter().flatten() {
        let _ = writeln!(page, "- **{argument}**: {meaning}");
    }
    if let Some(example) = &documentation.sql_example {
        let _ = writeln!(page, "\n{example}");
    }
    if let Some(related) = &documentation.related_udfs {
        let _ =
            writeln!(page, "\nSee also: {}.", related.iter().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", "));
    }
    page.push('\n');
}
