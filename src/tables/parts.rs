//! The parts of a model: runs of chunks that are worked on as one.

use std::ops::Range;
use std::sync::Arc;

use super::chunks::{Chunk, chunks};
use crate::Model;

/// Weights of a part of a large model.
const MOST: u64 = 1 << 25;

/// Weights of a part of a small one: with fewer, what a file has beside its payload begins to count.
const LEAST: u64 = 1 << 22;

/// Parts that a model of neither kind has: enough for many threads, and little lost when a run ends early.
const PARTS: u64 = 32;

/// The parts of a model, which follow from the shapes of its tensors alone.
#[derive(Debug, Clone)]
pub(crate) struct ModelParts {
    chunks: Arc<[Chunk]>,
    runs: Arc<[Range<usize>]>,
}

impl ModelParts {
    /// The parts of the tensors of a model that pass a test on their index.
    pub(crate) fn new(model: &Model, is_wanted: impl Fn(usize) -> bool) -> Self {
        let chunks: Arc<[Chunk]> = chunks(model).into_iter().filter(|chunk| is_wanted(chunk.tensor)).collect();
        let total: u64 = chunks.iter().map(|chunk| chunk.elements).sum();
        let runs = runs(&chunks, (total / PARTS).clamp(LEAST, MOST)).into();
        Self { chunks, runs }
    }

    /// Parts given by the tensors of each, by index, with the range of the chunks of each tensor. `None` if the model has no
    /// such tensor or chunk.
    pub(crate) fn of_ranges(model: &Model, parts: &[Vec<(usize, Range<usize>)>]) -> Option<Self> {
        let all = chunks(model);
        let mut of_tensors: Vec<&[Chunk]> = vec![&[]; model.tensors().len()];
        for of_tensor in all.chunk_by(|a, b| a.tensor == b.tensor) {
            of_tensors[of_tensor[0].tensor] = of_tensor;
        }
        let (mut chunks, mut runs) = (Vec::new(), Vec::with_capacity(parts.len()));
        for part in parts {
            let first = chunks.len();
            for (tensor, range) in part {
                chunks.extend_from_slice(of_tensors.get(*tensor)?.get(range.clone())?);
            }
            runs.push(first..chunks.len());
        }
        Some(Self { chunks: chunks.into(), runs: runs.into() })
    }

    pub(crate) fn all_chunks(&self) -> &Arc<[Chunk]> {
        &self.chunks
    }

    /// The chunks of each part, as indexes.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Range<usize>> {
        self.runs.iter()
    }

    /// The tensors of a part, in order, each with the range of its chunks.
    pub(crate) fn tensors(&self, part: usize) -> Vec<(usize, Range<usize>)> {
        let chunks = &self.chunks[self.runs[part].clone()];
        let range = |of_tensor: &[Chunk]| {
            let first = of_tensor[0].number as usize;
            (of_tensor[0].tensor, first..first + of_tensor.len())
        };
        chunks.chunk_by(|a, b| a.tensor == b.tensor).map(range).collect()
    }

    /// The weights of those tensors of a part that pass a test.
    pub(crate) fn weights(&self, part: usize, is_counted: impl Fn(usize) -> bool) -> u64 {
        let chunks = &self.chunks[self.runs[part].clone()];
        chunks.iter().filter(|chunk| is_counted(chunk.tensor)).map(|chunk| chunk.elements).sum()
    }

    /// The chunks of a part, to be gone through row by row.
    pub(crate) fn chunks(&self, part: usize) -> ChunkCursor {
        ChunkCursor { chunks: Arc::clone(&self.chunks), rest: self.runs[part].clone() }
    }
}

/// Chunks that are still to come.
pub(crate) struct ChunkCursor {
    chunks: Arc<[Chunk]>,
    rest: Range<usize>,
}

impl ChunkCursor {
    /// The chunk of a row, counted from the first that is still to come.
    pub(crate) fn chunk(&self, row: usize) -> Option<Chunk> {
        self.chunks[self.rest.clone()].get(row).copied()
    }

    /// The elements of the next rows: runs of single tensors.
    pub(crate) fn next_rows(&mut self, rows: usize) -> Vec<(usize, Range<u64>)> {
        let end = (self.rest.start + rows).min(self.rest.end);
        let mut elements: Vec<(usize, Range<u64>)> = Vec::new();
        for chunk in &self.chunks[self.rest.start..end] {
            match elements.last_mut().filter(|(tensor, _)| *tensor == chunk.tensor) {
                Some((_, range)) => range.end = chunk.start + chunk.elements,
                None => elements.push((chunk.tensor, chunk.start..chunk.start + chunk.elements)),
            }
        }
        self.rest.start = end;
        elements
    }
}

/// Runs of chunks of about so many elements each, in order; one at least.
pub(super) fn runs(chunks: &[Chunk], elements: u64) -> Vec<Range<usize>> {
    let (mut runs, mut first, mut filled) = (Vec::new(), 0, 0);
    for (i, chunk) in chunks.iter().enumerate() {
        filled += chunk.elements;
        if filled >= elements.max(1) {
            runs.push(first..i + 1);
            (first, filled) = (i + 1, 0);
        }
    }
    if first < chunks.len() || runs.is_empty() {
        runs.push(first..chunks.len());
    }
    runs
}
