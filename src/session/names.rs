//! The names of models, one rule for every front end.

use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, SchemaProvider};
use datafusion::common::Result;

use crate::QuantError;

/// The name of a model as its schema has it: in lower case, as SQL reads names without quotes. It is found however its letters
/// are written.
///
/// # Errors
/// If the name is empty, or has other characters than letters, digits, `_`, `-` and `.`.
pub fn model_name(name: &str) -> crate::Result<String> {
    let allowed = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || !name.chars().all(allowed) {
        let name = arrow_quant_formats::shown(name);
        return Err(QuantError::configuration(format!(
            "the name '{name}' of a model is not allowed: use letters, digits, _, - and ., as in flux or Qwen2.5-7B"
        )));
    }
    Ok(name.to_lowercase())
}

/// A catalog whose schemas are found however the letters of their names are written.
#[derive(Debug, Default)]
pub(super) struct AnyCase(MemoryCatalogProvider);

impl AnyCase {
    fn known(&self, name: &str) -> Option<String> {
        let lower = name.to_lowercase();
        [name, lower.as_str()].into_iter().find(|name| self.0.schema(name).is_some()).map(str::to_string)
    }
}

impl CatalogProvider for AnyCase {
    fn schema_names(&self) -> Vec<String> {
        self.0.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.0.schema(&self.known(name)?)
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> Result<Option<Arc<dyn SchemaProvider>>> {
        self.0.register_schema(name, schema)
    }

    fn deregister_schema(&self, name: &str, cascade: bool) -> Result<Option<Arc<dyn SchemaProvider>>> {
        let known = self.known(name);
        self.0.deregister_schema(known.as_deref().unwrap_or(name), cascade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_people_call_models() {
        for (name, schema) in [("m", "m"), ("Qwen2.5-7B", "qwen2.5-7b"), ("_x", "_x"), ("7b", "7b"), ("Größe", "größe")]
        {
            assert_eq!(model_name(name).unwrap(), schema);
        }
        for refused in ["", "a b", "a/b", "a\"b", "a;b", "a=b", "a\n"] {
            let message = model_name(refused).unwrap_err().to_string();
            assert!(message.contains("letters, digits, _, - and ."), "{message}");
        }
    }
}
