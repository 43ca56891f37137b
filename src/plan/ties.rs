//! Tensors that a model holds more than once, such as an output layer that is the embedding: they are stored once.

use std::collections::HashMap;

use crate::{Result, Tensor};

/// Bytes looked at in a few places of every tensor, before all are compared.
const GLANCE: usize = 64;

/// For each tensor the first one that is the same, if that is another. Tensors are the same that have dtype, shape and
/// all bytes in common and are matrices at least: vectors are often all ones, and too small to be worth it.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn repeated(tensors: &[Tensor]) -> Result<Vec<Option<usize>>> {
    let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
    let mut same = vec![None; tensors.len()];
    for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.shape.len() > 1 && tensor.bytes > 0) {
        let data = tensor.data()?;
        let first = alike.entry((tensor.stored, tensor.shape.as_slice(), glance(&data))).or_default();
        let mut equal = None;
        for &other in first.iter() {
            if tensors[other].data()? == data {
                equal = Some(other);
                break;
            }
        }
        match equal {
            Some(other) => {
                same[index] = Some(other);
                tensors[other].release(0..tensors[other].elements());
            }
            None => first.push(index),
        }
        tensor.release(0..tensor.elements());
    }
    Ok(same)
}

/// Bytes from the start, the middle and the end.
fn glance(data: &[u8]) -> Vec<u8> {
    let last = data.len().saturating_sub(GLANCE);
    [0, last / 2, last].iter().flat_map(|&at| &data[at..(at + GLANCE).min(data.len())]).copied().collect()
}
