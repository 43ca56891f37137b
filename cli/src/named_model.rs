//! `NAME=PATH`: a model, and the name of its schema in SQL.

use std::path::PathBuf;
use std::str::FromStr;

use arrow_quant_v2::model_name;

/// A model and the schema it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedModel {
    /// The schema: the name in lower case.
    pub name: String,
    /// The file or directory.
    pub path: PathBuf,
}

impl NamedModel {
    /// # Errors
    /// If the name is not allowed, or the path is empty.
    pub(crate) fn new(name: &str, path: &str) -> Result<Self, String> {
        let schema = model_name(name).map_err(|error| error.to_string())?;
        if path.is_empty() {
            return Err(format!("the path of '{name}' is empty"));
        }
        Ok(Self { name: schema, path: path.into() })
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
        assert_eq!("Qwen2.5-7B=x".parse(), model("qwen2.5-7b", "x"));
        for wrong in ["m", "=x", "a b=x", "a/b=x", "m="] {
            assert!(wrong.parse::<NamedModel>().is_err(), "{wrong}");
        }
    }
}
