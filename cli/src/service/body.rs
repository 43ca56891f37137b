//! The bodies of actions: JSON objects, their fields taken by name.

use serde_json::{Map, Value};

use arrow_quant_formats::nearest;
use arrow_quant_v2::Literals;
use arrow_quant_v2::{QuantError, Result};

/// The body of an action.
#[derive(Debug)]
pub(super) struct Body {
    action: &'static str,
    fields: Map<String, Value>,
}

impl Body {
    /// Reads the body of an action that knows these fields. An empty one has none.
    ///
    /// # Errors
    /// If it is no JSON object, or has a field that the action does not know; the message names the nearest.
    pub(super) fn parse(action: &'static str, bytes: &[u8], known: &[&str]) -> Result<Self> {
        let refused = |message: String| QuantError::configuration(format!("{action}: {message}"));
        let expected = || match known {
            [] => "{}".to_string(),
            names => format!("{{\"{}\": …}}", names.join("\": …, \"")),
        };
        let fields = match serde_json::from_slice(if bytes.is_empty() { b"{}" } else { bytes }) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(refused(format!("the body is no JSON object, expected {}", expected()))),
            Err(error) => return Err(refused(format!("the body is no JSON ({error}), expected {}", expected()))),
        };
        if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let advice = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("expected {}", expected()),
            };
            return Err(refused(format!("there is no field '{name}'; {advice}")));
        }
        Ok(Self { action, fields })
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// If it is missing or no text.
    pub(super) fn text(&self, field: &str) -> Result<&str> {
        self.optional_text(field)?
            .ok_or_else(|| QuantError::field(field, format!("{}: {field} is missing, expected text", self.action)))
    }

    /// A field that may be left out or null.
    ///
    /// # Errors
    /// If it is no text.
    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&str>> {
        self.optional(field, "text", Value::as_str)
    }

    /// A field that is false if it is left out.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub(super) fn flag(&self, field: &str) -> Result<bool> {
        Ok(self.optional(field, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A field that has fields itself, none if it is left out.
    ///
    /// # Errors
    /// If it is no object.
    pub(super) fn fields(&self, field: &str) -> Result<impl Iterator<Item = (&String, &Value)>> {
        let fields = self.optional(field, "an object", Value::as_object)?;
        Ok(fields.into_iter().flatten())
    }

    fn optional<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.fields.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => {
                let message =
                    format!("{}: {field} is {}, expected {expected}", self.action, Literals::Yaml.show(value));
                Err(QuantError::field(field, message))
            }
        }
    }
}
