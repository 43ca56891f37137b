//! The paths of a file: what its `use` lines name, one by one, and what its code names beside them.

use crate::tokens::{Token, Tokens};

/// One path, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) line: usize,
    /// The inline modules (`mod name { … }`) around it.
    pub(crate) within: Vec<String>,
    /// The words between the colons, without `self` at the end of a list's entry.
    pub(crate) words: Vec<String>,
    /// What a `use` line calls it in the module; code that is no `use` line calls it nothing.
    pub(crate) name: Option<String>,
    /// `use path::*`
    pub(crate) is_glob: bool,
    /// `pub use path`, which other crates may see.
    pub(crate) is_public: bool,
}

/// All paths of a file, in their order. Code's paths have two words at least.
pub(crate) fn read(tokens: &Tokens) -> Vec<Path> {
    let mut reader =
        Reader { tokens: &tokens.tokens, at: 0, depth: 0, is_public: false, modules: Vec::new(), paths: Vec::new() };
    while reader.at < reader.tokens.len() {
        reader.step();
    }
    reader.paths
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    /// Whether the `use` line that is read is `pub`.
    is_public: bool,
    /// Inline modules that are open, with the depth of their braces.
    modules: Vec<(String, usize)>,
    paths: Vec<Path>,
}

impl Reader<'_> {
    fn word(&self, ahead: usize) -> Option<&str> {
        self.tokens.get(self.at + ahead)?.word()
    }

    fn is_sign(&self, ahead: usize, sign: char) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| token.is_sign(sign))
    }

    fn is_colons(&self, ahead: usize) -> bool {
        self.is_sign(ahead, ':') && self.is_sign(ahead + 1, ':')
    }

    fn step(&mut self) {
        match self.word(0) {
            Some("use") if !self.is_sign(1, '<') => {
                self.is_public = self.at > 0 && self.tokens[self.at - 1].is_word("pub");
                self.at += 1;
                self.list_entry(&[]);
                self.is_public = false;
            }
            Some("mod") if self.is_sign(2, '{') => {
                if let Some(name) = self.word(1) {
                    self.modules.push((name.to_owned(), self.depth));
                }
                self.at += 2;
            }
            Some(_) if self.is_colons(1) && !self.follows_colons() => self.code_path(),
            _ => {
                if self.is_sign(0, '{') {
                    self.depth += 1;
                } else if self.is_sign(0, '}') {
                    self.depth = self.depth.saturating_sub(1);
                    if self.modules.last().is_some_and(|(_, depth)| *depth == self.depth) {
                        self.modules.pop();
                    }
                }
                self.at += 1;
            }
        }
    }

    /// True for `b` of `<A as T>::b::c` and of `Vec<x>::b`, whose beginning is a type.
    fn follows_colons(&self) -> bool {
        self.at >= 2 && self.tokens[self.at - 1].is_sign(':') && self.tokens[self.at - 2].is_sign(':')
    }

    fn code_path(&mut self) {
        let line = self.tokens[self.at].line;
        let mut words = Vec::new();
        while let Some(word) = self.word(0) {
            words.push(word.to_owned());
            self.at += 1;
            if !self.is_colons(0) || self.word(2).is_none() {
                break;
            }
            self.at += 2;
        }
        self.push(line, words, None, false);
    }

    /// Reads a tree of a `use` line whose beginning is `before`.
    fn list_entry(&mut self, before: &[String]) {
        let mut words = before.to_vec();
        let Some(line) = self.tokens.get(self.at).map(|token| token.line) else { return };
        loop {
            if self.is_colons(0) {
                self.at += 2;
            } else if self.is_sign(0, '{') {
                self.at += 1;
                while !self.is_sign(0, '}') && self.at < self.tokens.len() {
                    self.list_entry(&words);
                    if self.is_sign(0, ',') {
                        self.at += 1;
                    }
                }
                self.at += 1;
                return;
            } else if self.is_sign(0, '*') {
                self.at += 1;
                return self.push(line, words, None, true);
            } else if self.word(0) == Some("as") {
                let name = self.word(1).map(str::to_owned);
                self.at += 2;
                return self.push(line, words, name, false);
            } else if let Some(word) = self.word(0) {
                words.push(word.to_owned());
                self.at += 1;
            } else {
                if words.len() > 1 {
                    words.pop_if(|word| word == "self");
                }
                let name = words.last().cloned();
                // A `}` or `,` ends the entry and is its list's; anything else would stop the reader for good.
                if !self.is_sign(0, '}') && !self.is_sign(0, ',') {
                    self.at += 1;
                }
                return self.push(line, words, name, false);
            }
        }
    }

    fn push(&mut self, line: usize, words: Vec<String>, name: Option<String>, is_glob: bool) {
        let within = self.modules.iter().map(|(name, _)| name.clone()).collect();
        let is_public = self.is_public;
        self.paths.push(Path { line, within, words, name, is_glob, is_public });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens;

    fn paths(text: &str) -> Vec<Path> {
        read(&tokens::read(text))
    }

    fn written(text: &str) -> Vec<String> {
        paths(text).iter().map(|path| format!("{}:{}", path.line, path.words.join("::"))).collect()
    }

    #[test]
    fn nested_braces_are_one_path_each() {
        let text = "pub(crate) use crate::{a::{self, B, c::{D, E as F}},\n g::*};\nuse super::h;";
        assert_eq!(
            written(text),
            ["1:crate::a", "1:crate::a::B", "1:crate::a::c::D", "1:crate::a::c::E", "2:crate::g", "3:super::h"]
        );
        let read = paths(text);
        let names: Vec<Option<&str>> = read.iter().map(|path| path.name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("B"), Some("D"), Some("F"), None, Some("h")]);
        assert!(read[4].is_glob);
        assert!(read.iter().all(|path| !path.is_public));
        let public: Vec<bool> = paths("pub use a::{B, c::*}; use d::E;").iter().map(|path| path.is_public).collect();
        assert_eq!(public, [true, true, false]);
    }

    #[test]
    fn code_names_paths_too() {
        let text = "fn f(x: &crate::a::B) -> Vec<self::c::D> { $crate::e::f::<u8>(); super::super::g::H { x } }";
        assert_eq!(written(text), ["1:crate::a::B", "1:self::c::D", "1:crate::e::f", "1:super::super::g::H"]);
    }

    #[test]
    fn what_follows_a_type_is_no_path() {
        assert_eq!(written("<A as b::T>::c::d()"), ["1:b::T"]);
    }

    #[test]
    fn inline_modules_are_where_paths_stand() {
        let read = paths("mod a { mod b { use super::x; } use super::y; } use z::w;");
        let within: Vec<String> = read.iter().map(|path| path.within.join("::")).collect();
        assert_eq!(within, ["a::b", "a", ""]);
    }

    #[test]
    fn unfinished_lines_end() {
        assert_eq!(written("use crate::a::{b, c"), ["1:crate::a::b", "1:crate::a::c"]);
    }
}
