//! What the values of a tensor say of it before it is planned: buffers that are no weights, and weights that cannot be
//! quantized or that nobody has written.

use arrow_quant_kernels::{Dtype, Isa, Weights, to_f32};

use crate::{Result, Tensor};

/// Elements that are looked at in a few places of every tensor, before all are.
const GLANCE: u64 = 1024;

/// Elements that are looked at at once.
const PIECE: u64 = 1 << 20;

/// The least magnitude of a value that masks positions out, unless it is infinite.
const EXTREME: f64 = 1e30;

/// What tensors are called that hold masks, beside those whose names end with `_mask`.
const MASKS: &[&str] = &["mask", "masked_bias", "tril", "triu"];

/// What the values of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Weights, as far as a look tells.
    Weights,
    /// Nothing but zeros.
    Zeros,
    /// A mask: zeros, and one value that is infinite or nearly so; or what its name calls a mask.
    Mask,
    /// Values of which the largest is zero as an F32.
    BelowF32,
}

/// Looks at a tensor that could be quantized: a few values of most tensors, and all where those leave a doubt.
///
/// # Errors
/// If the tensor cannot be read.
pub(crate) fn look(tensor: &Tensor) -> Result<Contents> {
    let elements = tensor.elements();
    let Some(dtype) = tensor.float_dtype().filter(|_| tensor.shape.len() > 1 && elements > 0) else {
        return Ok(Contents::Weights);
    };
    let mut seen = Seen { largest: 0.0, value: None, is_varied: false, least: least(dtype) };
    let last = elements.saturating_sub(GLANCE);
    let glances = [0, last / 2, last].map(|start| start..(start + GLANCE).min(elements));
    let pieces = (0..elements).step_by(PIECE as usize).map(|start| start..(start + PIECE).min(elements));
    for range in glances.into_iter().chain(pieces) {
        seen.add(&values(tensor, dtype, range.clone())?);
        tensor.release(range);
        if seen.is_enough() {
            break;
        }
    }
    Ok(seen.contents(&tensor.name))
}

/// The magnitude below which the values of a type are zero as an F32; 0 for types that are no wider.
fn least(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::from(f32::from_bits(1)),
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => 0.0,
    }
}

fn values(tensor: &Tensor, dtype: Dtype, range: std::ops::Range<u64>) -> Result<Vec<f64>> {
    let data = tensor.read(range)?;
    if dtype == Dtype::F64 {
        let (values, _) = data.as_chunks::<8>();
        return Ok(values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect());
    }
    let weights = Weights::new(dtype, &data, 1)?;
    Ok(to_f32(Isa::active()?, weights).into_iter().map(f64::from).collect())
}

/// What was seen of a tensor.
struct Seen {
    largest: f64,
    /// The first value that is not 0.
    value: Option<f64>,
    /// Whether there is another one, or a NaN.
    is_varied: bool,
    /// The magnitude below which values are lost.
    least: f64,
}

impl Seen {
    fn add(&mut self, values: &[f64]) {
        for &value in values.iter().filter(|value| **value != 0.0) {
            self.largest = self.largest.max(value.abs());
            self.is_varied |= *self.value.get_or_insert(value) != value;
            if value.is_nan() {
                self.largest = f64::INFINITY;
            }
            if self.is_enough() {
                return;
            }
        }
    }

    /// Whether nothing that is still to come can change what the tensor is.
    fn is_enough(&self) -> bool {
        self.is_varied && self.largest > self.least
    }

    fn contents(&self, name: &str) -> Contents {
        let own = name.rsplit('.').next().unwrap_or(name);
        match self.value {
            None => Contents::Zeros,
            Some(_) if self.largest <= self.least => Contents::BelowF32,
            Some(value) if !self.is_varied && value.abs() >= EXTREME => Contents::Mask,
            Some(_) if own.ends_with("_mask") || MASKS.contains(&own) => Contents::Mask,
            Some(_) => Contents::Weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::model::tests::directory;

    fn contents_of(name: &str, values: &[f64]) -> Contents {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let json = format!(
            r#"{{"{name}":{{"dtype":"F64","shape":[1,{}],"data_offsets":[0,{}]}}}}"#,
            values.len(),
            bytes.len()
        );
        let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &bytes].concat();
        let directory = directory(&[("m.safetensors", file)]);
        look(&Model::open(directory.path()).unwrap().tensors()[0]).unwrap()
    }

    #[test]
    fn contents_are_told_by_values() {
        let infinity = f64::INFINITY;
        let long = |last: f64| [vec![0.0; 3_000_000], vec![last]].concat();
        assert_eq!(contents_of("w", &[0.5, -0.25]), Contents::Weights);
        assert_eq!(contents_of("w", &[0.0; 5000]), Contents::Zeros);
        assert_eq!(contents_of("w", &long(0.5)), Contents::Weights);
        assert_eq!(contents_of("w", &long(-infinity)), Contents::Mask);
        assert_eq!(contents_of("w", &[0.0, f64::from(f32::MIN), 0.0]), Contents::Mask);
        assert_eq!(contents_of("w", &[0.0, infinity, -infinity]), Contents::Weights);
        assert_eq!(contents_of("w", &[0.0, f64::NAN, f64::NAN]), Contents::Weights);
        assert_eq!(contents_of("w", &[1.0; 9]), Contents::Weights);
        assert_eq!(contents_of("w", &[1e-200, -2e-200]), Contents::BelowF32);
        assert_eq!(contents_of("w", &[1e-200, 1e-3]), Contents::Weights);
        assert_eq!(contents_of("w", &[f64::NAN; 3]), Contents::Weights);
    }

    #[test]
    fn contents_of_masks_are_told_by_names() {
        assert_eq!(contents_of("blocks.0.attn_mask", &[0.0, -100.0]), Contents::Mask);
        assert_eq!(contents_of("attn.masked_bias", &[-1e4, 0.0]), Contents::Mask);
        assert_eq!(contents_of("attn_mask.weight", &[0.5, -100.0]), Contents::Weights);
    }
}
