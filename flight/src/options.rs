//! The session options of Flight SQL. Their messages are not among those that arrow-flight has; they are written out after
//! `FlightSql.proto`, where `SetSessionOptionsRequest` and its like are defined.

use std::collections::HashMap;

use crate::service::{Call, State};
use crate::statements::check_option;

/// The value of an option.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SessionOptionValue {
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub option_value: Option<OptionValue>,
}

/// What an option can be; none is unset.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum OptionValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Boolean(bool),
    #[prost(sfixed64, tag = "3")]
    Integer(i64),
    #[prost(double, tag = "4")]
    Float(f64),
    #[prost(message, tag = "5")]
    Texts(StringListValue),
}

/// A list of texts.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StringListValue {
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// Asks for options to be set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// Why an option was not set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SetError {
    /// 1: no such option, 2: no such value, 3: another reason.
    #[prost(int32, tag = "1")]
    pub value: i32,
}

/// The options that were not set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, SetError>,
}

/// All options of a session.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// How a session was closed: 1 closed, 2 being closed, 3 not closeable.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CloseSessionResult {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

const NO_SUCH_OPTION: i32 = 1;
const NO_SUCH_VALUE: i32 = 2;
const NOT_SETTABLE: i32 = 3;

/// What `catalog` and `schema` are called in DataFusion.
const NAMES: [(&str, &str); 2] =
    [("catalog", "datafusion.catalog.default_catalog"), ("schema", "datafusion.catalog.default_schema")];

impl State {
    /// Sets `catalog`, `schema` and DataFusion's own options in the caller's session.
    pub(crate) fn set_options(&self, call: &Call, request: SetSessionOptionsRequest) -> SetSessionOptionsResult {
        let mut result = SetSessionOptionsResult::default();
        for (name, value) in request.session_options {
            if let Err(value) = set_option(call, &name, value) {
                result.errors.insert(name, SetError { value });
            }
        }
        result
    }

    /// The options that differ from none at all.
    pub(crate) fn options(&self, call: &Call) -> GetSessionOptionsResult {
        let state = call.session.ctx.state();
        let mut session_options = HashMap::new();
        for entry in state.config_options().entries() {
            let Some(value) = entry.value else { continue };
            let value = SessionOptionValue { option_value: Some(OptionValue::Text(value)) };
            if let Some((short, _)) = NAMES.iter().find(|(_, long)| *long == entry.key) {
                session_options.insert((*short).to_string(), value.clone());
            }
            session_options.insert(entry.key, value);
        }
        GetSessionOptionsResult { session_options }
    }
}

fn set_option(call: &Call, name: &str, value: SessionOptionValue) -> Result<(), i32> {
    let long = NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
    let text = match value.option_value {
        Some(OptionValue::Text(text)) => text,
        Some(OptionValue::Boolean(value)) => value.to_string(),
        Some(OptionValue::Integer(value)) => value.to_string(),
        Some(OptionValue::Float(value)) => value.to_string(),
        Some(OptionValue::Texts(_)) | None => return Err(NO_SUCH_VALUE),
    };
    let ctx = &call.session.ctx;
    let state = ctx.state();
    let known = state.config_options().entries().iter().any(|entry| entry.key == long);
    let short = NAMES.iter().find(|(_, other)| *other == long).map(|(short, _)| *short);
    let names_nothing = match short {
        Some("catalog") => state.catalog_list().catalog(&text).is_none(),
        Some("schema") => {
            let catalog = state.catalog_list().catalog(&state.config_options().catalog.default_catalog);
            catalog.is_none_or(|catalog| catalog.schema(&text).is_none())
        }
        _ => false,
    };
    if !known {
        return Err(NO_SUCH_OPTION);
    }
    check_option(long, &text).map_err(|_| NOT_SETTABLE)?;
    if names_nothing {
        return Err(NO_SUCH_VALUE);
    }
    let state = ctx.state_ref();
    let mut state = state.write();
    state.config_mut().options_mut().set(long, &text).map_err(|_| NO_SUCH_VALUE)
}
