//! The stored tensors of a component while it is found out what they were.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::codes::{Codes, Place};
use super::error::{RestoreError, RestoreProblem};
use super::grid::Grid;
use super::numbers::Number;
use super::parameters::{Order, Parameters, Then, Values};
use super::parts::Parts;
use super::{Recipe, Restoration, Restored, Result, Stored};
use crate::StoredType;
use crate::schemes::SchemeTensor;

/// The most bytes of a parameter that is read as a whole when a model is opened.
const MOST_BYTES: u64 = 1 << 28;

/// Names of tensors of a module that are about its inputs and outputs.
const OF_INPUTS: &[&str] = &[
    "input_scale",
    "scale_input",
    "input_zero_point",
    "input_global_scale",
    "input_scale_ub",
    "activation_scale",
    "activation_scale_ub",
    "qscale_act",
    "output_scale",
    "output_zero_point",
    "weight_shape",
];

/// How names of scales of attention end, whatever they belong to.
const OF_ATTENTION: &[&str] =
    &[".k_scale", ".v_scale", ".q_scale", ".prob_scale", ".k_zero_point", ".v_zero_point", ".prob_output_scale"];

/// The tensors of a component, those that were used, and what was made of them.
pub(super) struct Checkpoint<'a, P> {
    tensors: &'a [SchemeTensor<'a>],
    names: HashMap<&'a str, usize>,
    parts: &'a P,
    config: Option<&'a Map<String, Value>>,
    used: Vec<bool>,
    made: Vec<Restored>,
}

impl<'a, P: Parts> Checkpoint<'a, P> {
    pub(super) fn new(stored: &Stored<'a>, parts: &'a P) -> Self {
        let Stored { tensors, config, .. } = *stored;
        let names = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name, index)).collect();
        Self { tensors, names, parts, config, used: vec![false; tensors.len()], made: Vec::new() }
    }

    /// What was made, and what is kept. `None` if nothing was made.
    pub(super) fn finish(self) -> Option<Restoration> {
        let kept: Vec<usize> = self.left().collect();
        (!self.made.is_empty()).then_some(Restoration { tensors: self.made, kept })
    }

    /// The stored tensors that nothing was made of yet, by their places.
    pub(super) fn left(&self) -> impl Iterator<Item = usize> + '_ {
        self.used.iter().enumerate().filter(|(_, used)| !**used).map(|(index, _)| index)
    }

    /// Those of them whose names end so, with what stands before.
    pub(super) fn ending(&self, ending: &str) -> Vec<(usize, &'a str)> {
        let tensors = self.left().map(|index| (index, self.tensors[index].name));
        tensors.filter_map(|(index, name)| Some((index, name.strip_suffix(ending)?))).collect()
    }

    pub(super) fn tensor(&self, index: usize) -> SchemeTensor<'a> {
        self.tensors[index]
    }

    /// The stored tensor of a name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The stored tensor of a name, without which `tensor` cannot be restored.
    pub(super) fn need(&self, tensor: &str, name: &str) -> Result<usize, P::Error> {
        let missing = || RestoreError::of(tensor, RestoreProblem::Missing { part: name.to_string() });
        self.find(name).ok_or_else(missing)
    }

    /// Says that a stored tensor is a part of another one.
    pub(super) fn take(&mut self, index: usize) {
        self.used[index] = true;
    }

    /// Takes a stored tensor, if it is there.
    pub(super) fn take_named(&mut self, name: &str) {
        if let Some(index) = self.find(name) {
            self.take(index);
        }
    }

    /// Adds a restored tensor, and takes what it is made of and what belongs to the inputs of its module.
    pub(super) fn make(&mut self, name: String, shape: Vec<i64>, codes: usize, grid: Grid) {
        let recipe = Recipe::grid(grid);
        recipe.parts().into_iter().for_each(|part| self.take(part));
        let module = name.strip_suffix("weight").unwrap_or(&name);
        OF_INPUTS.iter().for_each(|ending| self.take_named(&format!("{module}{ending}")));
        self.made.push(Restored { name, shape, codes, recipe });
    }

    /// Takes the scales of keys and values in a cache.
    pub(super) fn take_attention(&mut self) {
        for ending in OF_ATTENTION {
            let scales = self.ending(ending).into_iter().map(|(index, _)| index);
            let single: Vec<_> = scales.filter(|index| self.elements(*index) <= 1).collect();
            single.into_iter().for_each(|index| self.take(index));
        }
    }

    pub(super) fn elements(&self, index: usize) -> u64 {
        crate::elements(self.tensors[index].shape)
    }

    /// Bytes of a stored tensor.
    pub(super) fn bytes(&self, index: usize) -> u64 {
        self.tensors[index].stored.bytes(self.elements(index)).unwrap_or(0)
    }

    /// Rows and columns of a stored matrix, both above zero; of a tensor of more dimensions, all but the last make the rows.
    pub(super) fn matrix(&self, index: usize) -> Result<[u64; 2], P::Error> {
        let SchemeTensor { name, shape, .. } = self.tensors[index];
        match shape {
            [rows @ .., columns] if !rows.is_empty() && !shape.contains(&0) => {
                Ok([crate::elements(rows), columns.unsigned_abs()])
            }
            _ => Err(self.shape(name, index, "two dimensions above 0")),
        }
    }

    /// The error of a shape that does not fit.
    pub(super) fn shape(&self, tensor: &str, index: usize, expected: impl Into<String>) -> RestoreError<P::Error> {
        let SchemeTensor { name, shape, .. } = self.tensors[index];
        let expected = expected.into();
        RestoreError::of(tensor, RestoreProblem::Shape { part: name.to_string(), found: shape.to_vec(), expected })
    }

    /// The error of a type that does not fit.
    pub(super) fn stored_type(&self, tensor: &str, index: usize, expected: &'static str) -> RestoreError<P::Error> {
        let SchemeTensor { name, stored, .. } = self.tensors[index];
        RestoreError::of(tensor, RestoreProblem::Type { part: name.to_string(), found: stored, expected })
    }

    /// Checks the type of a stored tensor.
    pub(super) fn expect(
        &self,
        tensor: &str,
        index: usize,
        types: &[StoredType],
        expected: &'static str,
    ) -> Result<(), P::Error> {
        if types.contains(&self.tensors[index].stored) {
            Ok(())
        } else {
            Err(self.stored_type(tensor, index, expected))
        }
    }

    /// All bytes of a small stored tensor.
    pub(super) fn read(&self, tensor: &str, index: usize) -> Result<Vec<u8>, P::Error> {
        let whole = 0..self.bytes(index);
        if whole.end > MOST_BYTES {
            return Err(self.shape(tensor, index, format!("at most {MOST_BYTES} bytes")));
        }
        let read = self.parts.read(index, std::slice::from_ref(&whole)).map_err(RestoreError::Read)?;
        Ok(read.first().map(|bytes| bytes.as_ref().to_vec()).unwrap_or_default())
    }

    /// All values of a small stored tensor.
    pub(super) fn values(&self, tensor: &str, index: usize) -> Result<Vec<f32>, P::Error> {
        let number = Number::of(self.tensors[index].stored);
        let number = number.ok_or_else(|| self.stored_type(tensor, index, "numbers"))?;
        let mut values = Vec::new();
        number.append(&self.read(tensor, index)?, &mut values);
        Ok(values)
    }

    /// The number that a stored tensor is.
    pub(super) fn number(&self, tensor: &str, index: usize) -> Result<f32, P::Error> {
        match self.values(tensor, index)?.as_slice() {
            [number] => Ok(*number),
            _ => Err(self.shape(tensor, index, "one element")),
        }
    }

    /// Integers of a stored tensor of 32 bits.
    pub(super) fn integers(&self, tensor: &str, index: usize) -> Result<Vec<i64>, P::Error> {
        self.expect(tensor, index, &[StoredType::I32, StoredType::U32], "I32")?;
        let bytes = self.read(tensor, index)?;
        Ok(bytes.as_chunks().0.iter().map(|&word| i64::from(i32::from_le_bytes(word))).collect())
    }

    /// The group of each column, from a stored tensor.
    pub(super) fn groups(&self, tensor: &str, index: usize, columns: u64, count: u64) -> Result<Vec<u32>, P::Error> {
        if self.elements(index) != columns {
            return Err(self.shape(tensor, index, format!("[{columns}], a group for each column")));
        }
        let part = self.tensors[index].name;
        let most = count.saturating_sub(1);
        let groups = self.integers(tensor, index)?.into_iter();
        groups
            .map(|found| {
                let group = u32::try_from(found).ok().filter(|group| u64::from(*group) <= most);
                let wrong = RestoreProblem::Group { part: part.to_string(), found, most };
                group.ok_or_else(|| RestoreError::of(tensor, wrong))
            })
            .collect()
    }

    /// The parameters that a stored matrix is, one for each block of a matrix of weights; `block` is what the configuration says
    /// of the sizes of blocks, if it does.
    pub(super) fn scales(
        &self,
        tensor: &str,
        index: usize,
        [rows, columns]: [u64; 2],
        block: Option<[u64; 2]>,
    ) -> Result<Parameters, P::Error> {
        let SchemeTensor { stored, shape, .. } = self.tensors[index];
        let number = Number::of_scale(stored).ok_or_else(|| self.stored_type(tensor, index, "floats"))?;
        let values = Values::Numbers { part: index, number, order: Order::Rows };
        let count = match shape {
            _ if self.elements(index) == 1 => return Ok(Parameters::of_all(values)),
            // A list is one of rows.
            [of_rows] => [of_rows.unsigned_abs(), 1],
            [.., _] => self.matrix(index)?,
            [] => [1, 1],
        };
        let configured = |axis: usize| block.map(|block| block[axis]);
        let sizes = [size(rows, count[0], configured(0)), size(columns, count[1], configured(1))];
        match sizes {
            [Some(of_rows), Some(of_columns)] => {
                Ok(Parameters { values, columns: count[1], block: [of_rows, of_columns], then: Then::Nothing })
            }
            _ => Err(self.shape(tensor, index, format!("one for each block of a matrix of {rows} by {columns}"))),
        }
    }

    /// The numbers of a stored matrix whose columns are rows of the weights, `rows` of them.
    pub(super) fn turned(&self, tensor: &str, index: usize, rows: u64) -> Result<Values, P::Error> {
        let number = Number::of_scale(self.tensors[index].stored);
        let number = number.ok_or_else(|| self.stored_type(tensor, index, "floats"))?;
        Ok(Values::Numbers { part: index, number, order: Order::Columns { rows } })
    }

    /// Codes of a matrix that lie row by row, lowest bits first.
    pub(super) fn row_codes(&self, index: usize, bits: u64) -> Result<Codes, P::Error> {
        let [rows, _] = self.matrix(index)?;
        Ok(Codes { part: index, bits, place: Place::Rows { row_bytes: self.bytes(index) / rows } })
    }

    // What the configuration says.

    pub(super) fn config(&self, key: &str) -> Option<&'a Value> {
        self.config?.get(key).filter(|value| !value.is_null())
    }

    /// Whether there is a configuration.
    pub(super) fn is_configured(&self) -> bool {
        self.config.is_some()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.config(key)?.as_str()
    }

    pub(super) fn is(&self, key: &str) -> bool {
        self.config(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The size of blocks, if so many blocks are a length: what is configured, or what follows from the numbers alone. The last block
/// may be cut off where the size is configured.
fn size(length: u64, count: u64, configured: Option<u64>) -> Option<u64> {
    /// What programs take if they do not say it.
    const USUAL: u64 = 128;
    match count {
        0 => None,
        1 => Some(length),
        _ if count == length => Some(1),
        _ => {
            let fits = |size: &u64| *size > 0 && length.div_ceil(*size) == count;
            let even = length.is_multiple_of(count).then(|| length / count);
            configured.map_or_else(|| even.or(Some(USUAL).filter(fits)), |size| Some(size).filter(fits).or(even))
        }
    }
}

/// The error of a setting that is not one that is read.
pub(super) fn setting<E>(tensor: &str, key: &str, found: impl ToString, allowed: &'static str) -> RestoreError<E> {
    RestoreError::of(tensor, RestoreProblem::Setting { key: key.to_string(), found: found.to_string(), allowed })
}
