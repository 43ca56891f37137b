//! `NAME=PATH`: a model, and the name of its schema in SQL.

use std::path::PathBuf;
use std::str::FromStr;

/// A model and the schema it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedModel {
    /// The schema, in lower case, as SQL reads names without quotes.
    pub name: String,
    /// The file or directory.
    pub path: PathBuf,
}

impl NamedModel {
    /// # Errors
    /// If SQL cannot read the name without quotes, or the path is empty.
    pub(crate) fn new(name: &str, path: &str) -> Result<Self, String> {
        let mut chars = name.chars();
        let starts = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !starts || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("the name '{name}' is not allowed: a letter or _, then letters, digits or _"));
        }
        if path.is_empty() {
            return Err(format!("the path of '{name}' is empty"));
        }
        Ok(Self { name: name.to_ascii_lowercase(), path: path.into() })
    }
}

impl FromStr for NamedModel {
    type Err = String;

    /// `NAME=PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("NAME=PATH is needed, as in --model m=path/to/model")?;
        Self::new(name, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_a_name_and_a_path() {
        let model = |name: &str, path: &str| Ok(NamedModel { name: name.to_string(), path: path.into() });
        assert_eq!("m=a/b=c".parse(), model("m", "a/b=c"));
        assert_eq!("_Flux1=x".parse(), model("_flux1", "x"));
        for wrong in ["m", "=x", "1m=x", "a-b=x", "a b=x", "m="] {
            assert!(wrong.parse::<NamedModel>().is_err(), "{wrong}");
        }
    }
}
