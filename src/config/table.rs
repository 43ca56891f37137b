//! The table of a configuration's fields, which YAML files, variables, flags, documents and type hints are made from.

use serde_json::Value;

use arrow_quant_formats::nearest;

use super::{Allowed, Kind, Origin, Problem, Refused, Shape};
use crate::error::Literals;

/// A configuration that has a table of fields.
pub trait Configuration: Clone + Default + 'static {
    /// Every field, in the order they are shown.
    const FIELDS: &'static [Field<Self>];

    /// What the names of all variables start with.
    const PREFIX: &'static str;

    /// Longer prefixes that another configuration has.
    const PREFIXES_OF_OTHERS: &'static [&'static str] = &[];

    /// Whether other programs have variables with the prefix too. If so, only a name that is almost one of ours is refused.
    const SHARES_PREFIX: bool = false;

    /// Whether a null in a file leaves its field as it is, even if null is no value of the field.
    const NULL_IS_UNSET: bool = false;

    /// The field that gives the other fields their defaults.
    const PROFILE: Option<&'static str> = None;

    /// The defaults of the profile, which alone is set.
    fn defaults_of_profile(self) -> Self {
        self
    }

    /// Checks fields that belong together.
    ///
    /// # Errors
    /// If they contradict each other.
    fn check(&self) -> Result<(), Refused>;
}

/// A field of a configuration.
#[derive(Debug)]
pub struct Field<C> {
    /// The name: in YAML and Python as it is, with dots between the names of what is nested.
    pub name: &'static str,
    /// The variable that sets the field.
    pub variable: Option<&'static str>,
    /// The flag that sets the field, without the dashes before it, and then its aliases. If there are none, the flag has the
    /// field's name.
    pub flags: &'static [&'static str],
    /// What the field may hold, in words.
    pub allowed: Allowed,
    /// What the field may hold, for programs.
    pub shape: Shape,
    /// Whether null is a value of the field.
    pub is_nullable: bool,
    /// What a flag's value is called.
    pub hint: Option<&'static str>,
    /// A value as an example, in YAML, if the default is empty.
    pub example: Option<&'static str>,
    /// The field that says the same in another unit. A value of this field replaces one that an earlier place gave that one.
    pub replaces: Option<&'static str>,
    /// The field that says a part of what this one says, and changes with it. A place that gives both must give the same.
    pub refines: Option<&'static str>,
    help: &'static str,
    get: fn(&C) -> Value,
    set: fn(&mut C, &Value) -> Result<(), Option<Problem>>,
}

impl<C> Field<C> {
    /// A field whose flag has its name and that has no variable; [`config_field!`](crate::config_field) calls this.
    pub const fn new<K: Kind>(
        names: (&'static str, &'static str, &'static str),
        _kind: &K,
        get: fn(&C) -> Value,
        set: fn(&mut C, &Value) -> Result<(), Option<Problem>>,
    ) -> Self {
        let (name, allowed, help) = names;
        Self {
            name,
            variable: None,
            flags: &[],
            allowed: if matches!(K::SHAPE, Shape::Switch) { Allowed::Switch } else { Allowed::words(allowed) },
            shape: K::SHAPE,
            is_nullable: K::IS_NULLABLE,
            hint: None,
            example: None,
            replaces: None,
            refines: None,
            help,
            get,
            set,
        }
    }

    /// With a variable.
    pub const fn variable(self, variable: &'static str) -> Self {
        Self { variable: Some(variable), ..self }
    }

    /// With what null means, if it is a value that users may give.
    pub const fn or_null(self, meaning: &'static str) -> Self {
        Self { allowed: self.allowed.or_null(meaning), ..self }
    }

    /// With a flag, and aliases of it.
    pub const fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }

    /// With what a flag's value is called.
    pub const fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    /// With an example.
    pub const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }

    /// In the place of another field.
    pub const fn replaces(self, other: &'static str) -> Self {
        Self { replaces: Some(other), ..self }
    }

    /// With what another field says, and more.
    pub const fn refines(self, other: &'static str) -> Self {
        Self { refines: Some(other), ..self }
    }

    /// What the field is for, as sentences of Markdown.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// The documentation of the field in Python: what it is for, and what it may hold.
    pub fn docstring(&self) -> String {
        format!("{} Allowed: {}.", self.help().replace('`', "``"), self.allowed.spelled(Literals::Python))
    }

    /// What a value of the field would be called at the place where the value of another is from.
    pub(super) fn beside(&self, origin: &Origin) -> Origin {
        match origin {
            Origin::Variable(_) => self.variable.map_or_else(|| self.as_flag(), Origin::Variable),
            Origin::Flag(_) => self.as_flag(),
            Origin::File(_) | Origin::Profile(_) | Origin::Explicit => origin.clone(),
        }
    }

    /// That a value is from the field's flag.
    pub fn as_flag(&self) -> Origin {
        Origin::Flag(format!("--{}", self.flag()))
    }

    /// The flag, without the dashes before it.
    pub fn flag(&self) -> String {
        self.flags.first().map_or_else(|| self.name.replace(['.', '_'], "-"), |flag| (*flag).to_string())
    }

    /// The field's value.
    pub fn get(&self, config: &C) -> Value {
        (self.get)(config)
    }

    /// Sets the field to a value that it allows.
    ///
    /// # Errors
    /// If the field does not allow the value; then nothing is changed.
    pub fn set(&self, config: &mut C, value: &Value) -> Result<(), Refused> {
        (self.set)(config, value).map_err(|problem| {
            let not_allowed = || Problem::Value { found: value.clone(), allowed: self.allowed };
            Refused::new(self.name, problem.unwrap_or_else(not_allowed))
        })
    }
}

/// A row of the table: the configuration's type, the field's name, its place in the configuration, its kind, what it may hold
/// in words, and what it is for.
#[macro_export]
macro_rules! config_field {
    ($config:ty, $name:expr, $($place:ident).+, $kind:expr, $allowed:expr, $help:expr) => {
        $crate::config::Field::new(
            ($name, $allowed, $help),
            &$kind,
            |config: &$config| $crate::config::Kind::show(&$kind, &config.$($place).+),
            |config: &mut $config, value| $crate::config::Kind::assign(&$kind, &mut config.$($place).+, value),
        )
    };
}

/// The field of a name, or else which name is nearest.
///
/// # Errors
/// If there is no such field.
pub fn named<C: Configuration>(name: &str) -> Result<&'static Field<C>, Refused> {
    C::FIELDS.iter().find(|field| field.name == name).ok_or_else(|| {
        let group = name.rfind('.').map_or("", |dot| &name[..=dot]);
        unknown::<C>(group, &name[group.len()..])
    })
}

/// A name that no field of a group has. The group's name ends in a dot; it is empty for fields that are in none.
pub(super) fn unknown<C: Configuration>(group: &str, name: &str) -> Refused {
    let in_group = C::FIELDS.iter().filter_map(|field| field.name.strip_prefix(group)?.split('.').next());
    let mut names: Vec<_> = in_group.collect();
    names.dedup();
    let spelled = name.replace('_', "-");
    let by_flag = C::FIELDS.iter().find(|field| field.flags.contains(&spelled.as_str())).map(|field| field.name);
    let nearest = by_flag.or_else(|| nearest(name, names.iter().copied()));
    let full = format!("{group}{name}");
    Refused::new(&full, Problem::Unknown { what: "field", name: full.clone(), nearest, names })
}

/// Sets a field by its name.
///
/// # Errors
/// If there is no such field, or it does not allow the value; then nothing is changed.
pub fn set<C: Configuration>(config: &mut C, name: &str, value: &Value) -> Result<(), Refused> {
    named(name)?.set(config, value)
}

/// Checks every field, and those that belong together, of a configuration whose fields anybody may have set.
///
/// # Errors
/// For the first field whose value is not allowed.
pub fn check<C: Configuration>(config: &C) -> Result<(), Refused> {
    let mut scratch = config.clone();
    for field in C::FIELDS {
        // What a field holds is what can be set.
        field.set(&mut scratch, &field.get(config))?;
    }
    config.check()
}

/// A value for a field, and where it is from.
pub(super) struct Assignment<C: 'static> {
    pub field: &'static Field<C>,
    pub value: Value,
    pub origin: Origin,
}
