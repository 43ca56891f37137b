//! A reader of Rust source that knows as much as the checks need: words, signs, comments, and where tests stand.

/// What a token is. Strings, numbers and characters are of no concern here and have no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word(String),
    Sign(char),
    Literal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.word() == Some(word)
    }

    pub(crate) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            Kind::Sign(_) | Kind::Literal => None,
        }
    }
}

/// One line of a comment, slashes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comment {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// A file's tokens without its tests, and its comments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Comment>,
    /// Lines of the file that are no test's.
    pub(crate) lines: usize,
    /// Modules that the file declares for tests alone: `#[cfg(test)] mod tests;`.
    pub(crate) test_modules: Vec<String>,
}

/// Reads a file. Items under `#[cfg(test)]` and `#[cfg(any(test, …))]` are left out.
pub(crate) fn read(text: &str) -> Tokens {
    let mut reader = Reader { rest: text, line: 1, tokens: Vec::new(), comments: Vec::new() };
    while reader.step() {}
    let Reader { tokens, comments, .. } = reader;
    without_tests(tokens, comments, text.lines().count())
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Token>,
    comments: Vec<Comment>,
}

impl Reader<'_> {
    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    /// Moves on by `bytes`, which end at a character, and counts the lines among them.
    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.comments.push(Comment { line: self.line, text: self.rest[..end].to_owned() });
            self.skip(end);
        } else if self.rest.starts_with("/*") {
            self.block_comment();
        } else if let Some(length) = string_length(self.rest) {
            self.push(Kind::Literal);
            self.skip(length);
        } else if first == '\'' {
            self.character_or_lifetime();
        } else if first.is_alphabetic() || first == '_' {
            let word = self.rest.strip_prefix("r#").unwrap_or(self.rest);
            let prefix = self.rest.len() - word.len();
            let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
            self.push(Kind::Word(word[..end].to_owned()));
            self.skip(prefix + end);
        } else if first.is_ascii_digit() {
            let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
            self.push(Kind::Literal);
            self.skip(end);
        } else {
            if !first.is_whitespace() {
                self.push(Kind::Sign(first));
            }
            self.skip(first.len_utf8());
        }
        true
    }

    /// Comments of this kind may hold others.
    fn block_comment(&mut self) {
        let (mut depth, mut at) = (0_usize, 0);
        while at < self.rest.len() {
            if self.rest[at..].starts_with("/*") {
                (depth, at) = (depth + 1, at + 2);
            } else if self.rest[at..].starts_with("*/") {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    break;
                }
            } else {
                at += self.rest[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        for (number, text) in self.rest[..at].lines().enumerate() {
            self.comments.push(Comment { line: self.line + number, text: text.to_owned() });
        }
        self.skip(at);
    }

    fn character_or_lifetime(&mut self) {
        let inside = &self.rest[1..];
        let length = match inside.chars().next() {
            // `'\''`: the character after the backslash is not the end.
            Some('\\') => inside[2..].find('\'').map_or(inside.len(), |end| end + 3),
            Some(c) if inside[c.len_utf8()..].starts_with('\'') => c.len_utf8() + 1,
            // A lifetime: the word after the quote means nothing here, but is no path either.
            _ => inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len()),
        };
        self.push(Kind::Literal);
        self.skip(1 + length);
    }
}

/// The length of the string that the text begins with: plain, raw, of bytes or of C.
fn string_length(text: &str) -> Option<usize> {
    let unprefixed = text.strip_prefix('b').or_else(|| text.strip_prefix('c')).unwrap_or(text);
    let raw = unprefixed.strip_prefix('r');
    let hashed = raw.unwrap_or(unprefixed);
    let opened = hashed.trim_start_matches('#');
    let hashes = hashed.len() - opened.len();
    let inside = opened.strip_prefix('"')?;
    let before = text.len() - inside.len();
    if raw.is_some() {
        let closing = format!("\"{}", "#".repeat(hashes));
        return Some(before + inside.find(&closing).map_or(inside.len(), |end| end + closing.len()));
    }
    if hashes > 0 {
        return None;
    }
    let mut escaped = false;
    let end = inside.find(|c| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    });
    Some(before + end.map_or(inside.len(), |end| end + 1))
}

fn without_tests(all: Vec<Token>, comments: Vec<Comment>, lines: usize) -> Tokens {
    let mut kept = Tokens { comments, lines, ..Tokens::default() };
    let mut at = 0;
    while at < all.len() {
        let Some(end) = attribute_end(&all, at) else {
            kept.tokens.push(all[at].clone());
            at += 1;
            continue;
        };
        if !is_for_tests(&all[at..end]) {
            kept.tokens.extend_from_slice(&all[at..end]);
            at = end;
            continue;
        }
        let after = item_end(&all, end);
        if let Some(module) = declared_module(&all[end..after]) {
            kept.test_modules.push(module);
        }
        let (first, last) = (all[at].line, all[after - 1].line);
        kept.lines -= last + 1 - first;
        kept.comments.retain(|comment| !(first..=last).contains(&comment.line));
        at = after;
    }
    kept
}

/// Where the attribute that begins at a token ends, if one does. Attributes of whole files (`#![…]`) are none.
fn attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    (tokens[at].is_sign('#') && tokens.get(at + 1)?.is_sign('[')).then(|| matching(tokens, at + 1))
}

fn is_for_tests(attribute: &[Token]) -> bool {
    let words: Vec<&str> = attribute.iter().filter_map(Token::word).collect();
    matches!(words.as_slice(), ["cfg", "test"] | ["cfg", "any" | "all", "test", ..])
}

/// The end of the item at a token: after its `;`, or after its braces.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Sign(';') => return at + 1,
            Kind::Sign('{') => {
                // A `use` goes on after its braces.
                let end = matching(tokens, at);
                return if tokens.get(end).is_some_and(|token| token.is_sign(';')) { end + 1 } else { end };
            }
            Kind::Sign('(' | '[') => at = matching(tokens, at),
            Kind::Word(_) | Kind::Sign(_) | Kind::Literal => at += 1,
        }
    }
    at
}

/// The index after the bracket that closes the one at `at`.
pub(crate) fn matching(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.kind {
            Kind::Sign('(' | '[' | '{') => depth += 1,
            Kind::Sign(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index + 1;
                }
            }
            Kind::Word(_) | Kind::Sign(_) | Kind::Literal => {}
        }
    }
    tokens.len()
}

fn declared_module(item: &[Token]) -> Option<String> {
    // Before `mod` stands who may see it.
    match item {
        [.., module, name, end] if module.is_word("mod") && end.is_sign(';') => name.word().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        read(text).tokens.iter().filter_map(|token| token.word().map(str::to_owned)).collect()
    }

    #[test]
    fn strings_comments_and_lifetimes_are_not_code() {
        let text = r####"let a = "crate::no \" no"; /* no /* no */ no */ let b = r#"no " no"#; // no
let c: &'static str = b"no"; let d = '"'; let e = '\''; let f = 'x'; r#type"####;
        assert_eq!(
            words(text),
            ["let", "a", "let", "b", "let", "c", "str", "let", "d", "let", "e", "let", "f", "type"]
        );
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let read = read("let a = \"\n\n\";\n/*\n*/ here");
        assert_eq!(read.tokens.last().map(|token| token.line), Some(5));
    }

    #[test]
    fn tests_are_left_out() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { \"}\" }\n}\n#[cfg(any(test, fuzzing))]\npub(crate) \
                    use x::{b, c};\n#[cfg(test)]\nmod other;\n#[cfg(unix)]\nfn d() {}\n";
        let read = read(text);
        assert_eq!(words(text), ["fn", "a", "cfg", "unix", "fn", "d"]);
        assert_eq!((read.lines, read.test_modules), (3, vec!["other".to_owned()]));
    }
}
