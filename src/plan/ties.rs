//! Tensors that a model holds more than once, such as an output layer that is the embedding: they are stored once.

use std::collections::HashMap;

use crate::{Result, Tensor};

/// Elements looked at in a few places of every tensor, before all are compared.
const GLANCE: u64 = 64;

/// Elements that are compared at once.
const PIECE: u64 = 1 << 20;

/// For each tensor the first one that is the same, if that is another. Tensors are the same that have dtype, shape and
/// all bytes in common and are matrices at least: vectors are often all ones, and too small to be worth it.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn repeated(tensors: &[Tensor]) -> Result<Vec<Option<usize>>> {
    let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
    let mut same = vec![None; tensors.len()];
    for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.shape.len() > 1 && tensor.bytes > 0) {
        let first = alike.entry((tensor.stored, tensor.shape.as_slice(), glance(tensor)?)).or_default();
        let mut equal = None;
        for &other in first.iter() {
            if are_equal(&tensors[other], tensor)? {
                equal = Some(other);
                break;
            }
        }
        match equal {
            Some(other) => same[index] = Some(other),
            None => first.push(index),
        }
    }
    Ok(same)
}

/// Elements from the start, the middle and the end.
fn glance(tensor: &Tensor) -> Result<Vec<u8>> {
    let elements = tensor.elements();
    // Elements of less than a byte begin and end with bytes at multiples of eight.
    let last = elements.saturating_sub(GLANCE) / 8 * 8;
    let mut seen = Vec::new();
    for start in [0, last / 16 * 8, last] {
        let range = start..(start + GLANCE).min(elements);
        seen.extend_from_slice(&tensor.read(range.clone())?);
        tensor.release(range);
    }
    Ok(seen)
}

/// Whether two tensors of the same type and shape have the same bytes.
fn are_equal(one: &Tensor, other: &Tensor) -> Result<bool> {
    let elements = one.elements();
    for start in (0..elements).step_by(PIECE as usize) {
        let range = start..(start + PIECE).min(elements);
        let is_equal = one.read(range.clone())? == other.read(range.clone())?;
        one.release(range.clone());
        other.release(range);
        if !is_equal {
            return Ok(false);
        }
    }
    Ok(true)
}
