//! How values are written in messages and documents.

use serde_json::Value;

/// A language that values are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Literals {
    /// YAML and JSON.
    Yaml,
    /// Python.
    Python,
    /// A command line, which has no null.
    Flag,
    /// A variable of the environment: text, whatever it looks like, and no null.
    Variable,
}

impl Literals {
    /// A value in this language. Text is in single quotes.
    pub fn show(self, value: &Value) -> String {
        match (self, value) {
            (_, Value::String(text)) => format!("'{text}'"),
            (Self::Variable, other) => format!("'{other}'"),
            (Self::Python, other) => {
                let mut written = String::new();
                write_python(other, &mut written);
                written
            }
            (Self::Yaml | Self::Flag, other) => other.to_string(),
        }
    }

    /// A truth value in this language.
    pub(super) const fn truth(self, value: bool) -> &'static str {
        match (self, value) {
            (Self::Python, true) => "True",
            (Self::Python, false) => "False",
            (Self::Yaml | Self::Flag | Self::Variable, true) => "true",
            (Self::Yaml | Self::Flag | Self::Variable, false) => "false",
        }
    }

    /// Null in this language, if it has one.
    pub(super) const fn null(self) -> Option<&'static str> {
        match self {
            Self::Yaml => Some("null"),
            Self::Python => Some("None"),
            Self::Flag | Self::Variable => None,
        }
    }
}

fn write_python(value: &Value, f: &mut String) {
    match value {
        Value::Null => f.push_str("None"),
        Value::Bool(value) => f.push_str(Literals::Python.truth(*value)),
        Value::Number(number) => f.push_str(&number.to_string()),
        Value::String(text) => f.push_str(&format!("'{text}'")),
        Value::Array(items) => {
            f.push('[');
            for (at, item) in items.iter().enumerate() {
                f.push_str(if at == 0 { "" } else { ", " });
                write_python(item, f);
            }
            f.push(']');
        }
        Value::Object(entries) => {
            f.push('{');
            for (at, (name, item)) in entries.iter().enumerate() {
                f.push_str(if at == 0 { "" } else { ", " });
                f.push_str(&format!("'{name}': "));
                write_python(item, f);
            }
            f.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_their_language_has_them() {
        let value = json!([null, true, 1.5, "a", {"b": false}]);
        assert_eq!(Literals::Python.show(&value), "[None, True, 1.5, 'a', {'b': False}]");
        assert_eq!(Literals::Yaml.show(&value), value.to_string());
        assert_eq!(Literals::Flag.show(&json!(3)), "3");
        assert_eq!(Literals::Variable.show(&json!(3)), "'3'");
        assert_eq!(Literals::Yaml.show(&json!("3")), "'3'");
    }
}
