//! Keys and their values, as they are put together.

use super::super::Value;
use super::LanguageError;
use super::config::Config;

type Result<T, E = LanguageError> = std::result::Result<T, E>;

/// Keys and values, in order.
#[derive(Debug)]
pub(super) struct Keys {
    pub architecture: &'static str,
    pub entries: Vec<(String, Value)>,
}

impl Keys {
    /// A key of the file as a whole.
    pub(super) fn general(&mut self, key: &str, value: Value) {
        self.entries.push((key.to_string(), value));
    }

    fn own(&mut self, key: &str, value: Value) {
        self.entries.push((format!("{}.{key}", self.architecture), value));
    }

    /// A key of the architecture, if it has a value.
    pub(super) fn whole(&mut self, key: &str, value: Option<u32>) {
        value.into_iter().for_each(|value| self.own(key, value.into()));
    }

    /// The same of another type.
    pub(super) fn real(&mut self, key: &str, value: Option<f64>) {
        value.into_iter().for_each(|value| self.own(key, (value as f32).into()));
    }

    pub(super) fn switch(&mut self, key: &str, value: bool) {
        self.own(key, value.into());
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.own(key, value.into());
    }

    /// Keys of models that choose among experts, if it is one.
    pub(super) fn experts(&mut self, config: &Config<'_>) -> Result<()> {
        let Some(count) = config.whole_if(&["num_local_experts", "num_experts"])? else { return Ok(()) };
        self.whole("expert_count", Some(count));
        self.whole("expert_used_count", Some(config.whole(&["num_experts_per_tok"])?));
        self.whole("expert_feed_forward_length", config.whole_if(&["moe_intermediate_size"])?);
        Ok(())
    }
}
