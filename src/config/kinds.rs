//! Kinds of fields: what a field may hold, and how its value is written in YAML, in JSON and in the environment.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use arrow_quant_kernels::Bits;
use serde_json::{Number, Value};

use super::pattern::pattern;
use super::{Allowed, Choice, Problem, WeightType, Width, listed};

/// How values of a kind look, for front ends that write flags and type hints.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// True or false.
    Switch,
    /// One of these.
    Choice(fn() -> Vec<Value>),
    /// A whole number.
    Whole,
    /// A number.
    Real,
    /// Text.
    Text,
    /// A list of names, which a flag separates by commas.
    Names,
    /// A list of text, whose flag is repeated.
    Texts,
    /// A mapping from text, whose flag is repeated.
    Mapping,
}

/// What a field may hold.
pub trait Kind {
    /// The field's type.
    type Value;

    /// How values look.
    const SHAPE: Shape;

    /// Whether null is a value.
    const IS_NULLABLE: bool = false;

    /// Reads a value; `None` if the field does not allow it.
    fn read(&self, value: &Value) -> Option<Self::Value>;

    /// Writes a value. One that the field does not allow is written as well, as something that [`read`](Self::read) refuses.
    fn show(&self, value: &Self::Value) -> Value;

    /// What is wrong with a value that cannot be read, if there is more to say than what is allowed.
    fn explain(&self, _value: &Value) -> Option<Problem> {
        None
    }

    /// Takes a new value into the field. It replaces the old one, unless values of several places add up.
    fn put(&self, place: &mut Self::Value, new: Self::Value) {
        *place = new;
    }

    /// Reads a value into the field, or says what is wrong beyond what is allowed. Then the field is not changed.
    ///
    /// # Errors
    /// If the field does not allow the value.
    fn assign(&self, place: &mut Self::Value, value: &Value) -> Result<(), Option<Problem>> {
        let new = self.read(value).ok_or_else(|| self.explain(value))?;
        self.put(place, new);
        Ok(())
    }
}

/// True or false.
#[derive(Debug)]
pub struct Switch;

impl Kind for Switch {
    type Value = bool;

    const SHAPE: Shape = Shape::Switch;

    fn read(&self, value: &Value) -> Option<bool> {
        value.as_bool()
    }

    fn show(&self, value: &bool) -> Value {
        (*value).into()
    }
}

/// One of the values of a type.
#[derive(Debug)]
pub struct OneOf<T>(PhantomData<T>);

/// One of the values of a type.
pub const fn one_of<T: Choice>() -> OneOf<T> {
    OneOf(PhantomData)
}

fn written<T: Choice>() -> Vec<Value> {
    T::all().into_iter().map(|(_, written)| written).collect()
}

impl<T: Choice> Kind for OneOf<T> {
    type Value = T;

    const SHAPE: Shape = Shape::Choice(written::<T>);

    fn read(&self, value: &Value) -> Option<T> {
        T::all().into_iter().find(|(_, written)| written == value).map(|(choice, _)| choice)
    }

    fn show(&self, value: &T) -> Value {
        T::all().into_iter().find(|(choice, _)| choice == value).map(|(_, written)| written).unwrap_or_default()
    }
}

/// The bits of a type. Setting them makes it grouped integers of so many.
#[derive(Debug)]
pub struct BitsOfType;

impl Kind for BitsOfType {
    type Value = WeightType;

    const SHAPE: Shape = OneOf::<Bits>::SHAPE;

    fn read(&self, value: &Value) -> Option<WeightType> {
        one_of::<Bits>().read(value).map(WeightType::Int)
    }

    fn show(&self, value: &WeightType) -> Value {
        one_of::<Bits>().show(&value.bits())
    }
}

/// Text for which this is true.
#[derive(Debug)]
pub struct Text(pub fn(&str) -> bool);

impl Kind for Text {
    type Value = String;

    const SHAPE: Shape = Shape::Text;

    fn read(&self, value: &Value) -> Option<String> {
        value.as_str().filter(|text| self.0(text)).map(str::to_string)
    }

    fn show(&self, value: &String) -> Value {
        value.as_str().into()
    }
}

/// A whole number for which this is true.
#[derive(Debug)]
pub struct Whole<T>(pub fn(T) -> bool);

impl<T: Copy + TryFrom<u64> + Into<Value>> Kind for Whole<T> {
    type Value = T;

    const SHAPE: Shape = Shape::Whole;

    fn read(&self, value: &Value) -> Option<T> {
        T::try_from(value.as_u64()?).ok().filter(|number| self.0(*number))
    }

    fn show(&self, value: &T) -> Value {
        (*value).into()
    }
}

/// A finite number for which this is true.
#[derive(Debug)]
pub struct Real(pub fn(f64) -> bool);

impl Kind for Real {
    type Value = f64;

    const SHAPE: Shape = Shape::Real;

    fn read(&self, value: &Value) -> Option<f64> {
        value.as_f64().filter(|number| number.is_finite() && self.0(*number))
    }

    fn show(&self, value: &f64) -> Value {
        number(*value)
    }
}

/// A number, or what it is called if JSON does not have it: no field allows that.
pub fn number(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

/// A regular expression.
#[derive(Debug)]
pub struct Pattern;

impl Kind for Pattern {
    type Value = String;

    const SHAPE: Shape = Shape::Text;

    fn read(&self, value: &Value) -> Option<String> {
        value.as_str().filter(|text| pattern(text).is_ok()).map(str::to_string)
    }

    fn show(&self, value: &String) -> Value {
        value.as_str().into()
    }

    fn explain(&self, value: &Value) -> Option<Problem> {
        pattern(value.as_str()?).err()
    }
}

/// A list of names.
#[derive(Debug)]
pub struct Names;

impl Kind for Names {
    type Value = Vec<String>;

    const SHAPE: Shape = Shape::Names;

    fn read(&self, value: &Value) -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_string)).collect()
    }

    fn show(&self, value: &Vec<String>) -> Value {
        value.as_slice().into()
    }
}

/// A list of regular expressions.
#[derive(Debug)]
pub struct Patterns;

impl Kind for Patterns {
    type Value = Vec<String>;

    const SHAPE: Shape = Shape::Texts;

    fn read(&self, value: &Value) -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| Pattern.read(item)).collect()
    }

    fn show(&self, value: &Vec<String>) -> Value {
        value.as_slice().into()
    }

    fn explain(&self, value: &Value) -> Option<Problem> {
        value.as_array()?.iter().find_map(|item| Pattern.explain(item))
    }
}

/// A mapping from names or regular expressions to widths.
#[derive(Debug)]
pub struct Widths;

/// A width as it is written, or by the name of its type.
fn width(value: &Value) -> Option<Width> {
    one_of::<Width>().read(value).or_else(|| one_of::<WeightType>().read(value).map(Width::Of))
}

impl Kind for Widths {
    type Value = BTreeMap<String, Width>;

    const SHAPE: Shape = Shape::Mapping;

    fn read(&self, value: &Value) -> Option<BTreeMap<String, Width>> {
        let width = |(layer, width): (&String, &Value)| {
            pattern(layer).ok()?;
            Some((layer.clone(), self::width(width)?))
        };
        value.as_object()?.iter().map(width).collect()
    }

    fn show(&self, value: &BTreeMap<String, Width>) -> Value {
        value.iter().map(|(layer, width)| (layer.clone(), one_of::<Width>().show(width))).collect()
    }

    fn explain(&self, value: &Value) -> Option<Problem> {
        value.as_object()?.iter().find_map(|(layer, width)| match self::width(width) {
            Some(_) => pattern(layer).err(),
            None => Some(Problem::Entry {
                entry: layer.clone(),
                found: width.clone(),
                allowed: Allowed::words(listed::WIDTH),
            }),
        })
    }
}

/// A value of another kind, or null.
#[derive(Debug)]
pub struct Nullable<K>(pub K);

impl<K: Kind> Kind for Nullable<K> {
    type Value = Option<K::Value>;

    const SHAPE: Shape = K::SHAPE;

    const IS_NULLABLE: bool = true;

    fn read(&self, value: &Value) -> Option<Option<K::Value>> {
        if value.is_null() { Some(None) } else { self.0.read(value).map(Some) }
    }

    fn show(&self, value: &Option<K::Value>) -> Value {
        value.as_ref().map_or(Value::Null, |value| self.0.show(value))
    }

    fn explain(&self, value: &Value) -> Option<Problem> {
        self.0.explain(value)
    }
}
