//! Checkpoints that other programs quantized, as the tensors of the original model: F32 values under the original names.
//!
//! [`plan`] takes the names, types and shapes of what is stored, and what a configuration says of it. It gives logical tensors,
//! each with a [`Recipe`]: which stored tensors it is made of and how. [`Recipe::restore`] then computes any range of elements
//! and reads only the bytes that it needs. Nothing here opens a file: bytes come from [`Parts`].
//!
//! Making a recipe checks types, shapes and group indexes; using it does not check them again.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};

use crate::schemes::{QuantizationScheme, SchemeTensor, first_sign};

mod awq;
mod bitsandbytes;
mod blocks;
mod checkpoint;
mod codes;
mod comfy;
mod compressed_tensors;
mod error;
mod fp4;
mod fp8;
mod ggml;
mod gptq;
mod grid;
mod mlx;
mod numbers;
mod parameters;
mod parts;
mod rotation;
mod sdnq;
#[cfg(test)]
mod tests;

use checkpoint::Checkpoint;
pub use error::{RestoreError, RestoreProblem, Unrestorable};
pub use ggml::{GgmlTensor, tensors as ggml_tensors};
pub use parts::Parts;

type Result<T, E> = std::result::Result<T, RestoreError<E>>;

/// The tensors of a component as they are stored, and what is said of them.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The scheme that was recognized, if there is one.
    pub scheme: Option<&'a QuantizationScheme>,
    /// What a configuration says of the quantization.
    pub config: Option<&'a Map<String, Value>>,
    /// The metadata of the files.
    pub metadata: &'a BTreeMap<String, String>,
    /// The tensors. [`Parts`] and recipes call them by their places in this list.
    pub tensors: &'a [SchemeTensor<'a>],
}

/// The tensors of a component as they were before they were quantized.
#[derive(Debug, Clone, Default)]
pub struct Restoration {
    /// Those that are computed.
    pub tensors: Vec<Restored>,
    /// Those that are what they were, by their places. All others are parts of computed ones, or only of use to the
    /// program that wrote them.
    pub kept: Vec<usize>,
}

/// A tensor that is computed from stored ones.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Its name in the original model.
    pub name: String,
    /// Its dimensions there.
    pub shape: Vec<i64>,
    /// The stored tensor that has its codes.
    pub codes: usize,
    /// How it is computed.
    pub recipe: Recipe,
}

/// How the elements of a tensor are computed from stored tensors.
#[derive(Debug, Clone)]
pub struct Recipe(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Grid(Box<grid::Grid>),
    Blocks(blocks::Blocks),
}

impl Recipe {
    fn grid(grid: grid::Grid) -> Self {
        Self(Kind::Grid(Box::new(grid)))
    }

    fn blocks(blocks: blocks::Blocks) -> Self {
        Self(Kind::Blocks(blocks))
    }

    /// A range of elements, row by row.
    ///
    /// # Errors
    /// If a part cannot be read.
    pub fn restore<P: Parts>(&self, parts: &P, elements: Range<u64>) -> std::result::Result<Vec<f32>, P::Error> {
        if elements.start >= elements.end {
            return Ok(Vec::new());
        }
        match &self.0 {
            Kind::Grid(grid) => grid.restore(parts, elements),
            Kind::Blocks(blocks) => blocks.restore(parts, elements),
        }
    }

    /// The stored tensors that it reads, by their places.
    pub fn parts(&self) -> Vec<usize> {
        let mut parts = match &self.0 {
            Kind::Grid(grid) => grid.parts(),
            Kind::Blocks(blocks) => vec![blocks.part],
        };
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    /// The bytes of the codes that only a range of elements needs, and the stored tensor that they are of. `None` where the
    /// codes of a range are spread over the whole tensor.
    pub fn bytes_of(&self, elements: Range<u64>) -> Option<(usize, Range<u64>)> {
        match &self.0 {
            Kind::Grid(grid) => grid.bytes_of(elements),
            Kind::Blocks(blocks) => blocks.bytes_of(elements),
        }
    }
}

/// What the tensors of a component were before they were quantized. `None` if there is nothing to restore, or the scheme is not
/// one that is read.
///
/// # Errors
/// [`RestoreError`] if a layout is not understood, what belongs to a tensor is missing or does not fit it, or a part cannot
/// be read.
pub fn plan<P: Parts>(stored: &Stored<'_>, parts: &P) -> Result<Option<Restoration>, P::Error> {
    use QuantizationScheme as Scheme;
    let mut checkpoint = Checkpoint::new(stored, parts);
    match stored.scheme {
        None => {}
        Some(Scheme::ScaledFp8) => fp8::restore(&mut checkpoint)?,
        Some(Scheme::CompressedTensors) => compressed_tensors::restore(&mut checkpoint)?,
        Some(Scheme::ModelOpt | Scheme::Nvfp4) => fp4::modelopt(&mut checkpoint)?,
        Some(Scheme::Mxfp4) => fp4::gpt_oss(&mut checkpoint)?,
        Some(Scheme::Gptq) => gptq::restore(&mut checkpoint)?,
        Some(Scheme::Awq) => awq::restore(&mut checkpoint)?,
        Some(Scheme::Bitsandbytes | Scheme::Bitsandbytes4 | Scheme::Bitsandbytes8) => {
            bitsandbytes::restore(&mut checkpoint)?;
        }
        Some(Scheme::Mlx) => mlx::restore(&mut checkpoint)?,
        Some(Scheme::Sdnq) => sdnq::restore(&mut checkpoint)?,
        Some(Scheme::ComfyUi) => comfy::restore(&mut checkpoint, stored.metadata)?,
        Some(_) => return Ok(None),
    }
    let left: Vec<SchemeTensor<'_>> = checkpoint.left().map(|index| stored.tensors[index]).collect();
    if let Some((tensor, sign)) = first_sign(&left) {
        return Err(RestoreError::of(&tensor, RestoreProblem::NotUnderstood { sign }));
    }
    fp8::plain(&mut checkpoint)?;
    Ok(checkpoint.finish())
}
