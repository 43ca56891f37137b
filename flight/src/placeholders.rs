//! Parameters that are written as `?`, as Python's DB-API, JDBC and ODBC do: they are `$1`, `$2` and so on, in their order.

use std::borrow::Cow;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};
use tonic::Status;

/// The statement with numbers for its `?`.
///
/// # Errors
/// If parameters are written both ways.
pub(crate) fn numbered(sql: &str) -> Result<Cow<'_, str>, Status> {
    if !sql.contains('?') {
        return Ok(Cow::Borrowed(sql));
    }
    // What cannot be cut into tokens is refused by the parser, with a better message.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() else {
        return Ok(Cow::Borrowed(sql));
    };
    let mut places = Places::new(sql);
    let (mut text, mut done, mut number, mut others) = (String::with_capacity(sql.len() + 16), 0, 0_usize, false);
    for token in &tokens {
        match &token.token {
            Token::Placeholder(name) if name == "?" => {
                number += 1;
                let at = places.offset(token.span.start);
                text.push_str(&sql[done..at]);
                text.push_str(&format!("${number}"));
                done = at + 1;
            }
            Token::Placeholder(_) => others = true,
            _ => {}
        }
    }
    if number > 0 && others {
        return Err(Status::invalid_argument(
            "the statement has parameters as ? and as $1 or $name: write all of them one way",
        ));
    }
    text.push_str(&sql[done..]);
    Ok(Cow::Owned(text))
}

/// Where lines and columns are in a text, asked for in their order.
struct Places<'a> {
    sql: &'a str,
    line: u64,
    column: u64,
    offset: usize,
}

impl<'a> Places<'a> {
    fn new(sql: &'a str) -> Self {
        Self { sql, line: 1, column: 1, offset: 0 }
    }

    /// The byte at a line and column, both counted from 1, columns in characters.
    fn offset(&mut self, place: Location) -> usize {
        for c in self.sql[self.offset..].chars() {
            if (self.line, self.column) >= (place.line, place.column) {
                break;
            }
            self.offset += c.len_utf8();
            if c == '\n' {
                (self.line, self.column) = (self.line + 1, 1);
            } else {
                self.column += 1;
            }
        }
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_are_numbered_where_they_are_parameters() {
        for (sql, expected) in [
            ("SELECT 1", "SELECT 1"),
            ("SELECT ?", "SELECT $1"),
            ("SELECT ? + ?, '?', \"?\" -- ?\n, /* ? */ ?", "SELECT $1 + $2, '?', \"?\" -- ?\n, /* ? */ $3"),
            ("SELECT 'ü''?\n' || ?\n\n, 'x\r\n?', ?", "SELECT 'ü''?\n' || $1\n\n, 'x\r\n?', $2"),
            ("SELECT $1, '?'", "SELECT $1, '?'"),
            ("SELECT x FROM t WHERE a IN (?,?) LIMIT ?", "SELECT x FROM t WHERE a IN ($1,$2) LIMIT $3"),
            ("SELECT 'open ?", "SELECT 'open ?"),
        ] {
            assert_eq!(numbered(sql).expect(sql), expected);
        }
        assert!(numbered("SELECT ?, $1").is_err_and(|status| status.message().contains("one way")));
    }
}
