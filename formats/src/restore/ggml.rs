//! GGUF files: blocks of ggml and floats, under the names and in the order of rows of the original model where that is a
//! language model of a known architecture.

use arrow_quant_kernels::{Encoding, Fp8};

use super::blocks::Blocks;
use super::error::{RestoreError, RestoreProblem};
use super::parts::Parts;
use super::{Recipe, Result};
use crate::StoredType;
use crate::gguf::language::Originals;
use crate::gguf::{Array, Header, Tensor, TensorType, Value};

/// What the key of a shape begins with that a tensor had before its rows were made fit for blocks.
const SHAPE: &str = "comfy.gguf.orig_shape.";

/// A tensor of the model that a GGUF file was made of.
#[derive(Debug, Clone)]
pub struct GgmlTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// The tensor of the file that it is in, by its place.
    pub part: usize,
    /// How it is computed, or what its elements are if they are read as they are.
    pub recipe: std::result::Result<Recipe, StoredType>,
}

/// The tensors of the model that a GGUF file was made of.
///
/// # Errors
/// If a type is not read, the file does not say how rows are ordered, or a part cannot be read.
pub fn tensors<P: Parts>(header: &Header, parts: &P) -> Result<Vec<GgmlTensor>, P::Error> {
    if let Some(count) = header.value("split.count").and_then(Value::number).filter(|count| *count > 1) {
        return Err(super::checkpoint::setting("", "split.count", count, "1: merge the parts with llama-gguf-split"));
    }
    let originals = Originals::new(header);
    let mut all = Vec::new();
    for (part, tensor) in header.tensors.iter().enumerate() {
        let originals = originals.as_ref().filter(|originals| originals.is_known(&tensor.name));
        match originals {
            Some(originals) => restore(header, parts, part, originals, &mut all)?,
            None if is_computed(&tensor.name) || factor(header, &tensor.name).is_some() => {}
            None => all.push(as_named(header, parts, part)?),
        }
    }
    Ok(all)
}

/// What only programs need that compute with the file: what positions are multiplied by, and scales of inputs.
fn is_computed(name: &str) -> bool {
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name)
        || name.ends_with(".input_scale")
}

/// The tensor of NVFP4 that a tensor is the scale of.
fn factor<'a>(header: &'a Header, name: &str) -> Option<&'a Tensor> {
    let weight = format!("{}weight", name.strip_suffix("scale")?);
    header.tensors.iter().find(|tensor| tensor.name == weight && tensor.kind == TensorType::Nvfp4)
}

/// Weights of a row of a shape.
fn row(shape: &[i64]) -> u64 {
    if shape.len() > 1 { shape.last().map_or(1, |row| row.unsigned_abs()) } else { 1 }
}

/// How the weights of a tensor are stored, with the number that they are multiplied by.
fn stored<P: Parts>(header: &Header, parts: &P, tensor: &Tensor) -> Result<(Encoding, Option<f32>), P::Error> {
    let encoding = encoding(tensor.kind).ok_or_else(|| {
        let allowed = "F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, \
                       TQ1_0, TQ2_0, MXFP4 or NVFP4";
        super::checkpoint::setting(&tensor.name, "the type", tensor.kind, allowed)
    })?;
    let scale = tensor.name.strip_suffix("weight").map(|module| format!("{module}scale"));
    let scale = header.tensors.iter().position(|other| Some(&other.name) == scale.as_ref());
    let Some(scale) = scale.filter(|_| tensor.kind == TensorType::Nvfp4) else { return Ok((encoding, None)) };
    let found = &header.tensors[scale];
    if found.kind != TensorType::F32 || crate::elements(&found.shape) != 1 {
        let problem = RestoreProblem::Shape {
            part: found.name.clone(),
            found: found.shape.clone(),
            expected: "one F32".to_string(),
        };
        return Err(RestoreError::of(&tensor.name, problem));
    }
    let read = parts.read(scale, std::slice::from_ref(&(0..4))).map_err(RestoreError::Read)?;
    let bytes = read.first().and_then(|bytes| bytes.as_ref().first_chunk().copied());
    Ok((encoding, bytes.map(f32::from_le_bytes)))
}

fn encoding(kind: TensorType) -> Option<Encoding> {
    kind.block_type()
        .map(Encoding::Block)
        .or_else(|| Encoding::parse(kind.name(), None).ok())
        .filter(|encoding| !matches!(encoding, Encoding::Grouped(..) | Encoding::Fp8(Fp8::E4M3 | Fp8::E5M2)))
}

/// The elements of a type that are read as they are.
fn plain(kind: TensorType) -> Option<StoredType> {
    kind.block_type().is_none().then(|| kind.name().parse().ok()).flatten()
}

/// A tensor as the file has it, in the shape that it had.
fn as_named<P: Parts>(header: &Header, parts: &P, part: usize) -> Result<GgmlTensor, P::Error> {
    let tensor = &header.tensors[part];
    let shape = match header.value(&format!("{SHAPE}{}", tensor.name)) {
        Some(Value::Array(Array::I32(shape))) => {
            let shape: Vec<i64> = shape.iter().copied().map(i64::from).collect();
            let product =
                shape.iter().try_fold(1_i64, |product, size| product.checked_mul(*size).filter(|_| *size >= 0));
            if product.map(i64::unsigned_abs) != Some(crate::elements(&tensor.shape)) {
                let expected = format!("as many elements as {:?}", tensor.shape);
                let problem = RestoreProblem::Shape { part: format!("{SHAPE}{}", tensor.name), found: shape, expected };
                return Err(RestoreError::of(&tensor.name, problem));
            }
            shape
        }
        Some(_) | None => tensor.shape.clone(),
    };
    let recipe = match plain(tensor.kind) {
        Some(stored) => Err(stored),
        None => {
            let (encoding, factor) = stored(header, parts, tensor)?;
            let row = tensor.shape.last().map_or(1, |row| row.unsigned_abs());
            Ok(Recipe::blocks(Blocks { part, encoding, start: 0, row, head: None, adds_one: false, factor }))
        }
    };
    Ok(GgmlTensor { name: tensor.name.clone(), shape, part, recipe })
}

/// A tensor of a language model, or those of its experts.
fn restore<P: Parts>(
    header: &Header,
    parts: &P,
    part: usize,
    originals: &Originals,
    all: &mut Vec<GgmlTensor>,
) -> Result<(), P::Error> {
    let tensor = &header.tensors[part];
    let wrong = |expected: String| {
        let problem = RestoreProblem::Shape { part: tensor.name.clone(), found: tensor.shape.clone(), expected };
        RestoreError::of(&tensor.name, problem)
    };
    let Some(original) = originals.of(&tensor.name, tensor.shape.first().map_or(0, |size| size.unsigned_abs())) else {
        return Err(super::checkpoint::setting(
            &tensor.name,
            "attention.head_count or the number of experts",
            "not understood",
            "numbers, without which rows cannot be put in order",
        ));
    };
    let adds_one = original.adds_one;
    let count = original.names.len() as u64;
    let shape = if original.is_of_experts { tensor.shape[1..].to_vec() } else { tensor.shape.clone() };
    let rows = if shape.len() > 1 { crate::elements(&shape) / row(&shape).max(1) } else { crate::elements(&shape) };
    let head = match original.heads {
        Some(heads) if heads > 0 && rows > 0 && rows.is_multiple_of(2 * u64::from(heads)) => {
            Some(rows / u64::from(heads))
        }
        Some(heads) => return Err(wrong(format!("rows of {heads} heads, an even number each"))),
        None => None,
    };
    if let (Some(stored), None, false, 1) = (plain(tensor.kind), head, adds_one, count) {
        let name = original.names.into_iter().next().unwrap_or_default();
        all.push(GgmlTensor { name, shape, part, recipe: Err(stored) });
        return Ok(());
    }
    let (encoding, factor) = stored(header, parts, tensor)?;
    // What is moved or cut must be whole blocks.
    let unit = if head.is_some() { row(&shape) } else { crate::elements(&shape) };
    if !unit.is_multiple_of(encoding.block_length() as u64) {
        return Err(wrong(format!("rows of whole blocks of {}", encoding.name())));
    }
    let bytes = (tensor.range.end - tensor.range.start).checked_div(count).unwrap_or(0);
    for (expert, name) in original.names.into_iter().enumerate() {
        let start = expert as u64 * bytes;
        let blocks = Blocks { part, encoding, start, row: row(&shape).max(1), head, adds_one, factor };
        all.push(GgmlTensor { name, shape: shape.clone(), part, recipe: Ok(Recipe::blocks(blocks)) });
    }
    Ok(())
}
