//! A configuration from several places: defaults of a profile, YAML file, environment, flags or explicit values. Later ones
//! win.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::table::{Assignment, named, unknown};
use arrow_quant_formats::nearest;

use super::{Allowed, Configuration, DiffusionQuantConfig, Origin, Problem, Refused};
use crate::{QuantError, Result};

/// A configuration, and where each field's value came from.
#[derive(Debug, Clone, Default)]
pub struct Layered<C> {
    /// All layers together.
    pub config: C,
    origins: BTreeMap<&'static str, Origin>,
    /// What each place says, in the order in which they were put together.
    said: Vec<(&'static str, Value, Origin)>,
}

impl<C: Configuration> Layered<C> {
    /// A field's value as JSON; null if there is no such field.
    pub fn value(&self, field: &str) -> Value {
        named::<C>(field).map(|field| field.get(&self.config)).unwrap_or_default()
    }

    fn set(&mut self, assignment: Assignment<C>) -> Result<(), Refused> {
        let Assignment { field, value, origin } = assignment;
        let before = field.refines.map(|other| (other, self.value(other)));
        field.set(&mut self.config, &value).map_err(|refused| refused.at(origin.clone()))?;
        if let Some((other, before)) = before {
            self.refuse_contradiction(field.name, other, &before, &origin)?;
        }
        // The other one of two fields that say the same has changed too.
        let refining = C::FIELDS.iter().find(|other| other.refines == Some(field.name)).map(|other| other.name);
        for other in field.refines.into_iter().chain(refining) {
            self.origins.insert(other, origin.clone());
        }
        // A value in one unit replaces the value that an earlier place has in another.
        if let Some(other) = field.replaces.filter(|_| !value.is_null())
            && self.origins.get(other).is_some_and(|from| *from != origin)
        {
            named::<C>(other)?.set(&mut self.config, &Value::Null)?;
            self.origins.remove(other);
        }
        self.origins.insert(field.name, origin.clone());
        self.said.push((field.name, value, origin));
        Ok(())
    }

    /// Fails if a place gave a field, whose value is set, and before it another one that says a part of it, and the two are
    /// not the same.
    fn refuse_contradiction(
        &self,
        field: &str,
        other: &'static str,
        before: &Value,
        origin: &Origin,
    ) -> Result<(), Refused> {
        let said = self.said.iter().rev().find(|(name, ..)| *name == other).map(|(_, _, from)| from);
        match said.filter(|from| from.is_as(origin)) {
            Some(from) if self.value(other) != *before => {
                let values = Box::new([self.value(field), before.clone()]);
                let problem = Problem::Contradicts { other, values };
                let mut refused = Refused::new(field, problem).at(origin.clone());
                refused.others.insert(other, from.clone());
                Err(refused)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Checks fields that belong together. The message names them as the places do that their values came from.
    fn check(&self) -> Result<(), Refused> {
        self.config.check().map_err(|mut refused| {
            let field = refused.field.as_deref().unwrap_or_default();
            refused.origin = if let Problem::Missing { needed_by } = *refused.problem {
                self.beside(needed_by, field)
            } else {
                self.origins.get(field).cloned()
            };
            refused.others.clone_from(&self.origins);
            refused
        })
    }

    /// The place that set a field, unless it has its default.
    pub fn set_by(&self, field: &str) -> Option<&Origin> {
        self.origins.get(field)
    }

    /// The place that an entry of a list or mapping is from, if places add up. Names of a mapping are compared without case.
    pub fn entry_set_by(&self, field: &str, entry: &str) -> Option<&Origin> {
        let has_entry = |value: &Value| match value {
            Value::Array(items) => items.iter().any(|item| item == entry),
            Value::Object(entries) => entries.keys().any(|name| name.eq_ignore_ascii_case(entry)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        };
        let said = self.said.iter().rev().find(|(name, value, _)| *name == field && has_entry(value));
        said.map(|(_, _, origin)| origin)
    }

    /// What a field would be called at the place that set another.
    pub fn beside(&self, set: &str, field: &str) -> Option<Origin> {
        let field = named::<C>(field).ok()?;
        self.origins.get(set).map(|origin| field.beside(origin))
    }
}

impl Layered<DiffusionQuantConfig> {
    /// Where a field's value came from; the profile, unless a layer above it set the field.
    pub fn origin(&self, field: &str) -> Origin {
        let profile = Origin::Profile(self.config.deployment_profile.name());
        self.origins.get(field).cloned().unwrap_or(profile)
    }
}

/// The places that a configuration comes from: defaults < YAML file < environment < flags and explicit values.
///
/// ```
/// use arrow_quant_v2::{ConfigLayers, DeploymentProfile};
///
/// let layered = ConfigLayers::new().explicit("deployment_profile", "edge".into()).explicit("bit_width", 4.into()).load()?;
/// assert_eq!((layered.config.weight_type.bits().get(), layered.config.group_size.get()), (4, 256));
/// # Ok::<(), arrow_quant_v2::QuantError>(())
/// ```
#[derive(Debug)]
pub struct Layers<C: 'static> {
    file: Option<PathBuf>,
    variables: Vec<(String, String)>,
    /// Names and values, and how each was given.
    given: Vec<(String, Value, Given)>,
    config: std::marker::PhantomData<C>,
}

/// How a caller gave a value.
#[derive(Debug)]
enum Given {
    /// By the name of the field.
    Explicitly,
    /// By the flag of the field.
    ByFlag,
    /// By another flag, which this is.
    ByAnotherFlag(String),
}

impl<C: Configuration> Default for Layers<C> {
    fn default() -> Self {
        Self { file: None, variables: Vec::new(), given: Vec::new(), config: std::marker::PhantomData }
    }
}

impl<C: Configuration> Layers<C> {
    /// The defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a YAML file.
    pub fn file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_path_buf());
        self
    }

    /// With the environment.
    pub fn environment(self) -> Self {
        self.variables(environment())
    }

    /// With these variables.
    pub fn variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// With a field's value, null for none.
    pub fn explicit(mut self, field: &str, value: Value) -> Self {
        self.given.push((field.to_string(), value, Given::Explicitly));
        self
    }

    /// The same, by the field's flag, which is what messages call the field.
    pub fn flag(mut self, field: &str, value: Value) -> Self {
        self.given.push((field.to_string(), value, Given::ByFlag));
        self
    }

    /// The same, by another flag than the field's.
    pub fn another_flag(mut self, flag: &str, field: &str, value: Value) -> Self {
        self.given.push((field.to_string(), value, Given::ByAnotherFlag(flag.to_string())));
        self
    }

    /// Puts the layers together, and checks the whole.
    ///
    /// # Errors
    /// Naming the field, the file, variable or flag, the value, what is allowed, and for unknown names the nearest one.
    pub fn load(&self) -> Result<Layered<C>> {
        let mut assignments = self.file.as_deref().map(of_file).transpose()?.unwrap_or_default();
        assignments.extend(of_variables(&self.variables)?);
        for (name, value, given) in &self.given {
            let field = named(name)?;
            let origin = match given {
                Given::Explicitly => Origin::Explicit,
                Given::ByFlag => field.as_flag(),
                Given::ByAnotherFlag(flag) => Origin::Flag(flag.clone()),
            };
            assignments.push(Assignment { field, value: value.clone(), origin });
        }
        // The profile comes first, whatever layer it is from: its defaults are below all layers.
        let is_profile = |assignment: &Assignment<C>| C::PROFILE == Some(assignment.field.name);
        let (profile, others): (Vec<_>, Vec<_>) = assignments.into_iter().partition(is_profile);
        let others = refining_last(others);
        let mut layered = Layered::default();
        profile.into_iter().try_for_each(|assignment| layered.set(assignment))?;
        layered.config = layered.config.defaults_of_profile();
        others.into_iter().try_for_each(|assignment| layered.set(assignment))?;
        layered.check()?;
        Ok(layered)
    }
}

/// The variables that the process was started with.
pub(super) fn environment() -> Vec<(String, String)> {
    // One that is not UTF-8 must not pass for one that is not set.
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Sets the fields that have variables; gives their names.
pub(super) fn apply_variables<C: Configuration>(
    config: &mut C,
    variables: &[(String, String)],
) -> Result<Vec<&'static str>, Refused> {
    let mut layered = Layered { config: config.clone(), origins: BTreeMap::new(), said: Vec::new() };
    refining_last(of_variables(variables)?).into_iter().try_for_each(|assignment| layered.set(assignment))?;
    *config = layered.config;
    Ok(layered.said.into_iter().map(|(name, ..)| name).collect())
}

/// The same, with fields that refine another behind those of the same place.
fn refining_last<C>(assignments: Vec<Assignment<C>>) -> Vec<Assignment<C>> {
    let mut ordered: Vec<Assignment<C>> = Vec::with_capacity(assignments.len());
    let mut refining: Vec<Assignment<C>> = Vec::new();
    for assignment in assignments {
        if refining.first().is_some_and(|other| !other.origin.is_as(&assignment.origin)) {
            ordered.append(&mut refining);
        }
        if assignment.field.refines.is_some() { refining.push(assignment) } else { ordered.push(assignment) }
    }
    ordered.append(&mut refining);
    ordered
}

/// What variables say. Variables that are empty count as not set.
fn of_variables<C: Configuration>(variables: &[(String, String)]) -> Result<Vec<Assignment<C>>, Refused> {
    let is_ours = |name: &str| {
        name.starts_with(C::PREFIX) && !C::PREFIXES_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut assignments = Vec::new();
    for (name, text) in variables.iter().filter(|(name, text)| is_ours(name) && !text.is_empty()) {
        let found =
            C::FIELDS.iter().find_map(|field| Some((field, field.variable.filter(|variable| *variable == name)?)));
        match found {
            Some((field, variable)) => {
                assignments.push(Assignment { field, value: value_of(text), origin: Origin::Variable(variable) });
            }
            None => refuse_unknown::<C>(name)?,
        }
    }
    Ok(assignments)
}

/// Refuses a variable that no field has, unless it is probably another program's.
fn refuse_unknown<C: Configuration>(name: &str) -> Result<(), Refused> {
    // Without the prefix, which makes all of them alike.
    let rest = name.strip_prefix(C::PREFIX).unwrap_or(name);
    let (field, flag) = (rest.to_lowercase(), rest.to_lowercase().replace('_', "-"));
    let meant = C::FIELDS.iter().find(|known| known.name == field || known.flags.contains(&flag.as_str()));
    let variables =
        || C::FIELDS.iter().filter_map(|field| Some((field.variable?.strip_prefix(C::PREFIX)?, field.variable?)));
    let similar = nearest(rest, variables().map(|(rest, _)| rest));
    if C::SHARES_PREFIX && meant.is_none() && similar.is_none() {
        return Ok(());
    }
    let nearest = match meant {
        Some(field) => field.variable,
        None => variables().find(|(rest, _)| Some(*rest) == similar).map(|(_, variable)| variable),
    };
    Err(Refused::general(Problem::UnknownVariable { name: name.to_string(), nearest }))
}

/// What a text stands for: a number, a truth value, or text.
pub fn value_of(text: &str) -> Value {
    let text = text.trim();
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => serde_json::from_str(text).ok().filter(Value::is_number).unwrap_or_else(|| text.into()),
    }
}

/// What a YAML file says.
fn of_file<C: Configuration>(path: &Path) -> Result<Vec<Assignment<C>>> {
    let origin = Origin::File(path.to_path_buf());
    let mut assignments = Vec::new();
    flatten(&mut assignments, "", &read(path)?, &origin).map_err(|refused| refused.at(origin.clone()))?;
    Ok(assignments)
}

/// The fields of a file, or of a group of fields in it, whose name then ends in a dot.
fn flatten<C: Configuration>(
    assignments: &mut Vec<Assignment<C>>,
    group: &str,
    entries: &Map<String, Value>,
    origin: &Origin,
) -> Result<(), Refused> {
    for (name, value) in entries {
        let full = format!("{group}{name}");
        let inner = format!("{full}.");
        let is_unset = value.is_null() && C::NULL_IS_UNSET;
        if !name.contains('.') && C::FIELDS.iter().any(|field| field.name.starts_with(&inner)) {
            match value {
                Value::Object(entries) => flatten(assignments, &inner, entries, origin)?,
                _ if is_unset => {}
                other => {
                    let problem = Problem::Value { found: other.clone(), allowed: Allowed::words("names and values") };
                    return Err(Refused::new(&full, problem));
                }
            }
            continue;
        }
        let known = C::FIELDS.iter().find(|field| field.name == full && !name.contains('.'));
        let field = known.ok_or_else(|| unknown::<C>(group, name))?;
        if !is_unset {
            assignments.push(Assignment { field, value: value.clone(), origin: origin.clone() });
        }
    }
    Ok(())
}

/// The entries of a YAML file.
fn read(path: &Path) -> Result<Map<String, Value>> {
    // A configuration that is not there is one that is wrong, not a failing disk.
    let missing = |e| QuantError::configuration(QuantError::io(path, e).to_string()).at(path);
    let text = fs::read_to_string(path).map_err(missing)?;
    let yaml = serde_yaml::from_str(&text).map_err(|e| Refused::file(path, format_args!("not YAML: {e}")))?;
    match json(yaml).map_err(|message| Refused::file(path, message))? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => Err(Refused::file(path, "expected fields and their values, one `field: value` a line").into()),
    }
}

/// YAML as JSON. What JSON has no word for becomes text, which the field then refuses.
fn json(yaml: serde_yaml::Value) -> Result<Value, String> {
    use serde_yaml::Value as Yaml;

    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => value.into(),
        Yaml::String(text) => text.into(),
        Yaml::Number(number) => serde_json::to_value(&number)
            .ok()
            .filter(|value| !value.is_null())
            .unwrap_or_else(|| number.to_string().into()),
        Yaml::Sequence(items) => items.into_iter().map(json).collect::<Result<_, _>>()?,
        Yaml::Mapping(entries) => {
            let entry = |(name, value)| match name {
                Yaml::String(name) => Ok((name, json(value)?)),
                other => Err(format!("a name is {other:?}, expected text: put it in quotes")),
            };
            Value::Object(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} is not understood, leave it out", tagged.tag)),
    })
}
