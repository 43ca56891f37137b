//! Files of at most 450 lines, functions of at most 60, tests aside; or a reason beside them.

use crate::tokens::{Token, Tokens, matching};
use crate::workspace::Workspace;

const FILE_LINES: usize = 450;
const FUNCTION_LINES: usize = 60;
/// Begins the reason: in a file's `//!` comment, or in a comment above the function.
const REASON: &str = "Long because: ";

/// Everything that is longer without a reason, one line each.
pub(crate) fn check(workspace: &Workspace) -> Vec<String> {
    let files = workspace.crates.iter().flat_map(|member| &member.files);
    files.flat_map(|file| check_file(&file.path, &file.tokens)).collect()
}

fn check_file(path: &str, read: &Tokens) -> Vec<String> {
    let mut faults = Vec::new();
    let is_reasoned = read.comments.iter().any(|comment| comment.text.starts_with(&format!("//! {REASON}")));
    if read.lines > FILE_LINES && !is_reasoned {
        faults.push(format!("{path}: {} lines without `//! {REASON}…`", read.lines));
    }
    for (index, token) in read.tokens.iter().enumerate().filter(|(_, token)| token.is_word("fn")) {
        let Some(name) = read.tokens.get(index + 1).and_then(Token::word) else { continue };
        let Some(end) = body_end(&read.tokens, index) else { continue };
        let lines = read.tokens[end - 1].line + 1 - token.line;
        if lines > FUNCTION_LINES && !has_reason(read, index) {
            faults.push(format!("{path}:{}: `{name}` has {lines} lines without `// {REASON}…`", token.line));
        }
    }
    faults
}

/// The end of the body of the function at `at`; None for one without a body.
fn body_end(tokens: &[Token], mut at: usize) -> Option<usize> {
    loop {
        let token = tokens.get(at)?;
        if token.is_sign(';') {
            return None;
        }
        if token.is_sign('{') {
            return Some(matching(tokens, at));
        }
        at = if token.is_sign('(') || token.is_sign('[') { matching(tokens, at) } else { at + 1 };
    }
}

/// True if a comment between the item before and the function begins with the reason.
fn has_reason(read: &Tokens, at: usize) -> bool {
    let line = read.tokens[at].line;
    let is_end = |token: &&Token| token.is_sign('}') || token.is_sign(';') || token.is_sign('{');
    let before = read.tokens[..at].iter().rfind(is_end).map_or(0, |token| token.line);
    let beside = read.comments.iter().filter(|comment| (before + 1..=line).contains(&comment.line));
    beside
        .map(|comment| comment.text.trim_start_matches('/').trim())
        .any(|text| text.strip_prefix(REASON.trim_end()).is_some_and(|reason| !reason.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens;

    fn faults(text: &str) -> Vec<String> {
        check_file("a.rs", &tokens::read(text))
    }

    fn function(before: &str, lines: usize) -> String {
        format!("struct S;\n{before}fn f(x: [u8; 3]) -> u8 {{{}}}\n", "\n".repeat(lines - 1))
    }

    #[test]
    fn long_functions_need_a_reason() {
        assert_eq!(faults(&function("", 60)), Vec::<String>::new());
        assert_eq!(faults(&function("", 61)), ["a.rs:2: `f` has 61 lines without `// Long because: …`"]);
        let reasoned = "/// Doc.\n// Long because: one table.\n#[inline]\npub(crate) ";
        assert_eq!(faults(&function(reasoned, 99)), Vec::<String>::new());
        assert_eq!(faults(&function("// Long because:\n", 61)).len(), 1);
    }

    #[test]
    fn a_reason_counts_for_the_next_function_alone() {
        let text = function("// Long because: one table.\n", 61) + &function("", 61);
        assert_eq!(faults(&text).len(), 1);
    }

    #[test]
    fn long_files_need_a_reason() {
        let text = "struct S;\n".repeat(451);
        assert_eq!(faults(&text), ["a.rs: 451 lines without `//! Long because: …`"]);
        assert_eq!(faults(&format!("//! Long because: one list.\n{text}")), Vec::<String>::new());
    }

    #[test]
    fn tests_do_not_count() {
        let text = format!("#[cfg(test)]\nmod tests {{\n{}{}}}\n", function("", 61), "\n".repeat(450));
        assert_eq!(faults(&text), Vec::<String>::new());
    }
}
