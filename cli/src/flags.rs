//! Flags that are made from a table of fields.

use std::marker::PhantomData;

use arrow_quant_v2::Literals;
use arrow_quant_v2::config::{Configuration, Field, Problem, Refused, Shape, number, value_of};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::{Map, Value};

/// A configuration whose fields are flags.
pub(crate) trait Flagged: Configuration {
    /// Whether the table makes the flag of a field. Others are written by hand.
    fn has_flag(field: &Field<Self>) -> bool;

    /// What a field is if nothing sets it, in words; `None` if that is nothing.
    fn default_in_words(field: &Field<Self>) -> Option<String> {
        in_words(&field.get(&Self::default()))
    }

    /// What help puts above the flags.
    const HEADING: Option<&'static str> = None;

    /// Those fields.
    fn flagged() -> impl Iterator<Item = &'static Field<Self>> {
        Self::FIELDS.iter().filter(|field| Self::has_flag(field))
    }
}

/// The flags of a configuration, as they were given.
pub(crate) struct Flags<C> {
    matches: ArgMatches,
    config: PhantomData<C>,
}

impl<C: Flagged> Args for Flags<C> {
    fn augment_args(command: Command) -> Command {
        command.args(C::flagged().map(|field| match C::HEADING {
            Some(heading) => flag(field).help_heading(heading),
            None => flag(field),
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: Flagged> FromArgMatches for Flags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { matches: matches.clone(), config: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.matches = matches.clone();
        Ok(())
    }
}

impl<C: Flagged> Flags<C> {
    /// The fields whose flags were given, and their values.
    ///
    /// # Errors
    /// If an entry was given twice.
    pub(crate) fn given(&self) -> Result<Vec<(&'static str, Value)>, Refused> {
        let given = |field: &'static Field<C>| Ok(given(field, &self.matches)?.map(|value| (field.name, value)));
        C::flagged().filter_map(|field| given(field).transpose()).collect()
    }
}

/// The flag of a field. Its help is that of the table, with what is allowed.
fn flag<C: Flagged>(field: &Field<C>) -> Arg {
    let aliases = field.flags.iter().skip(1).copied();
    let flag = Arg::new(field.name).long(field.flag()).aliases(aliases).help(help(field));
    let (hint, flag) = match field.shape {
        Shape::Switch => (
            "BOOL",
            flag.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(value_parser!(bool)),
        ),
        Shape::Choice(choices) => {
            let choices = choices().iter().map(text).collect::<Vec<_>>();
            return flag
                .value_name(field.hint.map_or_else(|| field.flag().to_uppercase().replace('-', "_"), str::to_string))
                .value_parser(PossibleValuesParser::new(choices));
        }
        Shape::Whole => ("N", flag.allow_negative_numbers(true).value_parser(value_parser!(i64))),
        Shape::Real => ("X", flag.allow_negative_numbers(true).value_parser(value_parser!(f64))),
        Shape::Text => ("TEXT", flag),
        Shape::Names => ("TEXT,…", flag.action(ArgAction::Append).value_delimiter(',')),
        Shape::Texts => ("TEXT", flag.action(ArgAction::Append)),
        Shape::Mapping => ("NAME=VALUE", flag.action(ArgAction::Append).value_parser(entry)),
    };
    flag.value_name(field.hint.unwrap_or(hint))
}

/// What a flag's help says: what the field is for, its default and variable, what it may hold if `clap` does not list it, and
/// how often it may be given.
fn help<C: Flagged>(field: &Field<C>) -> String {
    let mut help = field.help().trim_end_matches('.').replace('`', "");
    let mut add = |what: &str, text: &str| help.push_str(&format!(" [{what}: {text}]"));
    match field.shape {
        Shape::Switch | Shape::Choice(_) => {}
        Shape::Whole | Shape::Real | Shape::Text | Shape::Names => {
            add("allowed", &field.allowed.spelled(Literals::Flag));
        }
        Shape::Texts | Shape::Mapping => {
            add("allowed", &format!("{}; may be given more than once", field.allowed.spelled(Literals::Flag)));
        }
    }
    if let Some(default) = C::default_in_words(field) {
        add("default", &default);
    }
    if let Some(variable) = field.variable {
        add("env", variable);
    }
    help
}

/// A value as help shows it; `None` for one that says nothing: null, and what is empty.
pub(crate) fn in_words(value: &Value) -> Option<String> {
    let is_empty = match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    (!is_empty).then(|| text(value))
}

/// The value that a field's flag was given.
///
/// # Errors
/// If an entry was given twice.
fn given<C: Configuration>(field: &Field<C>, matches: &ArgMatches) -> Result<Option<Value>, Refused> {
    let texts = || matches.get_many::<String>(field.name).map(|texts| texts.map(String::as_str));
    Ok(match field.shape {
        Shape::Switch => matches.get_one::<bool>(field.name).map(|value| (*value).into()),
        Shape::Choice(_) => matches.get_one::<String>(field.name).map(|text| value_of(text)),
        Shape::Whole => matches.get_one::<i64>(field.name).map(|value| (*value).into()),
        Shape::Real => matches.get_one::<f64>(field.name).map(|value| number(*value)),
        Shape::Text => matches.get_one::<String>(field.name).map(|text| text.as_str().into()),
        Shape::Names | Shape::Texts => texts().map(Iterator::collect),
        Shape::Mapping => {
            let Some(entries) = matches.get_many::<(String, Value)>(field.name) else { return Ok(None) };
            let mut all = Map::new();
            for (name, value) in entries {
                if all.insert(name.clone(), value.clone()).is_some() {
                    let problem = Problem::Twice { entry: name.clone() };
                    return Err(Refused::new(field.name, problem).at(field.as_flag()));
                }
            }
            Some(all.into())
        }
    })
}

/// `NAME=VALUE`.
fn entry(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.rsplit_once('=').ok_or("expected a name, = and a value")?;
    Ok((name.to_string(), value_of(value)))
}

/// A value without quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use arrow_quant_v2::DiffusionQuantConfig;
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_are_those_of_the_table() {
        let command = Flags::<DiffusionQuantConfig>::augment_args(Command::new("test"));
        for field in DiffusionQuantConfig::flagged() {
            let flag = command.get_arguments().find(|flag| flag.get_id() == field.name).unwrap();
            assert_eq!(flag.get_long(), Some(field.flag().as_str()));
            let (help, said) = (help(field), flag.get_help().unwrap().to_string());
            assert_eq!(help, said);
            assert!(said.starts_with(&field.help().trim_end_matches('.').replace('`', "")), "{said}");
            let words = field.allowed.spelled(Literals::Flag);
            let allowed: Vec<_> = words.split([' ', ',']).collect();
            let possible = flag.get_possible_values();
            assert!(possible.iter().all(|value| allowed.contains(&value.get_name())), "{}", field.name);
            assert!(!possible.is_empty() || said.contains(&words), "{said}");
            assert!(field.variable.is_none_or(|variable| said.contains(&format!("[env: {variable}]"))), "{said}");
        }
    }

    #[test]
    fn help_tells_the_default_of_each_profile() {
        let help_of = |name| help(DiffusionQuantConfig::FIELDS.iter().find(|field| field.name == name).unwrap());
        assert!(help_of("bit_width").contains("[default: 4; edge 2, cloud 8] [env: ARROW_QUANT_BIT_WIDTH]"));
        assert!(help_of("deployment_profile").ends_with("[default: local]"));
        assert!(help_of("fail_fast").contains("[default: false]"));
        assert!(!help_of("tensors").contains("[default"), "{}", help_of("tensors"));
    }

    #[test]
    fn entries_are_names_and_values() {
        assert_eq!(entry("a.b=8"), Ok(("a.b".to_string(), json!(8))));
        assert_eq!(entry("a=b=16"), Ok(("a=b".to_string(), json!(16))));
        assert_eq!(entry("a=four"), Ok(("a".to_string(), json!("four"))));
        assert!(entry("a").is_err());
    }
}
