//! `config.json` of a language model.

use serde_json::{Map, Value};

use super::LanguageError;

type Result<T, E = LanguageError> = std::result::Result<T, E>;

/// The keys of a configuration, or of a part of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config<'a> {
    keys: &'a Map<String, Value>,
    /// What is around it, where it is that of the language model in a model of several.
    outer: Option<&'a Map<String, Value>>,
}

/// JSON that must be an object.
pub(super) fn object(file: &'static str, bytes: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes)
        .map_err(|error| LanguageError::File { file, problem: crate::shown(&error.to_string()) })
}

impl<'a> Config<'a> {
    pub(super) fn new(keys: &'a Map<String, Value>) -> Self {
        match keys.get("text_config").and_then(Value::as_object) {
            Some(text) => Self { keys: text, outer: Some(keys) },
            None => Self { keys, outer: None },
        }
    }

    /// The value of a key that is not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        let own = self.keys.get(key).filter(|value| !value.is_null());
        own.or_else(|| self.outer?.get(key).filter(|value| !value.is_null()))
    }

    /// The first of several spellings that is there.
    fn first(&self, keys: &[&str]) -> Option<&'a Value> {
        keys.iter().find_map(|key| self.get(key))
    }

    /// A key of which there are several spellings, as a number above zero.
    pub(super) fn whole(&self, keys: &[&str]) -> Result<u32> {
        const EXPECTED: &str = "a whole number above 0";
        let found = self.first(keys);
        let number = found.and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number > 0).ok_or_else(|| wrong(keys, found, EXPECTED))
    }

    /// The same, if it is there.
    pub(super) fn whole_if(&self, keys: &[&str]) -> Result<Option<u32>> {
        self.first(keys).map(|_| self.whole(keys)).transpose()
    }

    pub(super) fn real(&self, keys: &[&str]) -> Result<f64> {
        let found = self.first(keys);
        found.and_then(Value::as_f64).ok_or_else(|| wrong(keys, found, "a number"))
    }

    pub(super) fn real_if(&self, keys: &[&str]) -> Result<Option<f64>> {
        self.first(keys).map(|_| self.real(keys)).transpose()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(super) fn is(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Numbers in a list.
    pub(super) fn reals(&self, key: &str) -> Result<Vec<f32>> {
        let found = self.get(key);
        let list = found.and_then(Value::as_array);
        let numbers =
            list.and_then(|list| list.iter().map(|n| n.as_f64().map(|n| n as f32)).collect::<Option<Vec<_>>>());
        numbers.ok_or_else(|| wrong(&[key], found, "a list of numbers"))
    }

    /// A part of the configuration.
    pub(super) fn part(&self, key: &str) -> Option<Self> {
        self.get(key).and_then(Value::as_object).map(|keys| Self { keys, outer: None })
    }

    /// The names of classes that the model can be loaded as.
    pub(super) fn classes(&self) -> Vec<&'a str> {
        let list = self.outer.and_then(|outer| outer.get("architectures")).or_else(|| self.keys.get("architectures"));
        list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(super) fn heads(&self) -> Result<u32> {
        self.whole(&["num_attention_heads", "n_heads"])
    }

    pub(super) fn kv_heads(&self) -> Result<u32> {
        self.whole_if(&["num_key_value_heads", "n_kv_heads"])?.map_or_else(|| self.heads(), Ok)
    }

    pub(super) fn width(&self) -> Result<u32> {
        self.whole(&["hidden_size", "d_model"])
    }

    pub(super) fn blocks(&self) -> Result<u32> {
        self.whole(&["num_hidden_layers", "n_layers"])
    }

    /// Weights of a head, if the configuration says it.
    pub(super) fn head_dim(&self) -> Result<Option<u32>> {
        self.whole_if(&["head_dim"])
    }

    /// Weights of a head.
    pub(super) fn head_size(&self) -> Result<u32> {
        match self.head_dim()? {
            Some(size) => Ok(size),
            None => Ok(self.width()? / self.heads()?),
        }
    }

    /// How positions are rotated: both spellings of transformers. Where layers differ, that of layers with full attention.
    pub(super) fn rope(&self) -> Self {
        let parameters = self.part("rope_parameters");
        let of_layers = parameters.and_then(|parameters| parameters.part("full_attention"));
        of_layers.or(parameters).or_else(|| self.part("rope_scaling")).unwrap_or(*self)
    }

    /// The base of the frequencies, if the configuration says it.
    pub(super) fn rope_base(&self) -> Result<Option<f64>> {
        let parameters = self.part("rope_parameters").map(|_| self.rope());
        match parameters.map(|parameters| parameters.real_if(&["rope_theta"])).transpose()?.flatten() {
            Some(base) => Ok(Some(base)),
            None => self.real_if(&["rope_theta"]),
        }
    }

    /// How frequencies are scaled; `None` if they are not.
    pub(super) fn rope_kind(&self) -> Option<String> {
        let rope = self.part("rope_parameters").or_else(|| self.part("rope_scaling")).map(|_| self.rope())?;
        let kind = rope.text("rope_type").or_else(|| rope.text("type"))?;
        // Scaled by the length of the text: as long as that is what the model was trained with, it is not scaled.
        (!["default", "dynamic"].contains(&kind)).then(|| kind.to_string())
    }
}

fn wrong(keys: &[&str], found: Option<&Value>, expected: &'static str) -> LanguageError {
    let key = keys.first().copied().unwrap_or_default().to_string();
    LanguageError::Key { key, found: found.map(ToString::to_string), expected }
}
