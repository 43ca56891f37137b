//! The rules, read from the tables of `docs/architecture.md`: nothing else says what an arrow may be.

/// What the document allows.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) crates: Vec<CrateRule>,
    /// Modules of the engine, from top to bottom.
    pub(crate) ranks: Vec<String>,
    pub(crate) words: Vec<WordRule>,
    pub(crate) circles: Vec<CircleRule>,
    pub(crate) re_exports: Vec<ReExportRule>,
}

/// What of other crates a crate passes on.
#[derive(Debug)]
pub(crate) struct ReExportRule {
    pub(crate) folder: String,
    /// Paths, such as `a::b::C`.
    pub(crate) names: Vec<String>,
}

/// Modules that may know each other.
#[derive(Debug)]
pub(crate) struct CircleRule {
    /// Their parent, such as `a/b::c`.
    pub(crate) parent: String,
    pub(crate) modules: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct CrateRule {
    pub(crate) folder: String,
    /// Folders of the crates it may know.
    pub(crate) knows: Vec<String>,
}

/// Words that stand in some places only, or in some places not.
#[derive(Debug)]
pub(crate) struct WordRule {
    pub(crate) words: Vec<String>,
    /// Beginnings of paths; empty: everywhere but in `not_in`.
    pub(crate) only_in: Vec<String>,
    pub(crate) not_in: Vec<String>,
}

/// Finds the tables by the first words of their headers.
pub(crate) fn read(document: &str) -> Result<Rules, String> {
    let mut rules = Rules::default();
    for row in rows(document, "| crate |")? {
        let [folder, .., knows] = row.as_slice() else { return Err("the table of crates has too few columns".into()) };
        let folder = spans(folder).remove(0);
        rules.crates.push(CrateRule { folder, knows: spans(knows) });
    }
    for row in rows(document, "| module |")? {
        rules.ranks.push(spans(&row[0]).remove(0));
    }
    for row in rows(document, "| words |")? {
        let [words, only_in, not_in, ..] = row.as_slice() else {
            return Err("the table of words has too few columns".into());
        };
        rules.words.push(WordRule { words: spans(words), only_in: spans(only_in), not_in: spans(not_in) });
    }
    for row in rows(document, "| circle in |")? {
        let [parent, modules, why] = row.as_slice() else {
            return Err("the table of circles has three columns".into());
        };
        if why.is_empty() {
            return Err(format!("docs/architecture.md: the circle in {parent} has no reason"));
        }
        rules.circles.push(CircleRule { parent: spans(parent).remove(0), modules: spans(modules) });
    }
    for row in rows(document, "| passed on by |")? {
        let [folder, names, ..] = row.as_slice() else {
            return Err("the table of what is passed on has too few columns".into());
        };
        rules.re_exports.push(ReExportRule { folder: spans(folder).remove(0), names: spans(names) });
    }
    Ok(rules)
}

/// The cells of the table whose header begins so. Each row's first cell names something in `code`.
fn rows(document: &str, header: &str) -> Result<Vec<Vec<String>>, String> {
    let mut lines = document.lines().skip_while(|line| !line.starts_with(header));
    if lines.next().is_none() {
        return Err(format!("docs/architecture.md has no table that begins with `{header}`"));
    }
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if spans(&cells[0]).is_empty() {
            return Err(format!("docs/architecture.md: the first cell names nothing in `code`: {line}"));
        }
        Ok(cells)
    })
    .collect()
}

/// What stands between backticks, without a slash at the end.
fn spans(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(|span| span.trim_end_matches('/').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "
| crate | what | may know |
|---|---|---|
| `a/` | `x` | `b`, `c/d` |
| `b/` | y | nothing |

| module | what |
|---|---|
| `m` | z |

| words | only in | not in | why |
|---|---|---|---|
| `w`, `.v` | `b/` | | |

| circle in | modules | why |
|---|---|---|
| `a::m` | `n`, `o` | halves of one |

| passed on by | what | why |
|---|---|---|
| `a/` | `b::B` | in signatures |
";

    #[test]
    fn tables_become_rules() {
        let rules = read(DOCUMENT).unwrap();
        assert_eq!(rules.crates[0].knows, ["b", "c/d"]);
        assert!(rules.crates[1].knows.is_empty());
        assert_eq!(rules.ranks, ["m"]);
        assert_eq!(rules.circles[0].modules, ["n", "o"]);
        assert_eq!((rules.re_exports[0].folder.as_str(), rules.re_exports[0].names[0].as_str()), ("a", "b::B"));
        assert_eq!((rules.words[0].words.len(), rules.words[0].only_in.len()), (2, 1));
    }

    #[test]
    fn a_circle_needs_a_reason() {
        assert!(read(&DOCUMENT.replace("halves of one", "")).unwrap_err().contains("`a::m` has no reason"));
    }

    #[test]
    fn a_table_that_is_not_there_is_an_error() {
        assert!(read("# Architecture").unwrap_err().contains("| crate |"));
    }
}
