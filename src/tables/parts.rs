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
    pub fn new(model: &Model, is_wanted: impl Fn(usize) -> bool) -> Self {
        let chunks: Arc<[Chunk]> = chunks(model).into_iter().filter(|chunk| is_wanted(chunk.tensor)).collect();
        let total: u64 = chunks.iter().map(|chunk| chunk.elements).sum();
        let runs = runs(&chunks, (total / PARTS).clamp(LEAST, MOST)).into();
        Self { chunks, runs }
    }

    pub fn all_chunks(&self) -> &Arc<[Chunk]> {
        &self.chunks
    }

    /// The chunks of each part, as indexes.
    pub fn iter(&self) -> std::slice::Iter<'_, Range<usize>> {
        self.runs.iter()
    }

    /// The tensors of a part, in order.
    pub fn tensors(&self, part: &Range<usize>) -> Vec<usize> {
        let mut tensors: Vec<usize> = self.chunks[part.clone()].iter().map(|chunk| chunk.tensor).collect();
        tensors.dedup();
        tensors
    }

    /// The weights of those tensors of a part that pass a test.
    pub fn weights(&self, part: usize, is_counted: impl Fn(usize) -> bool) -> u64 {
        let chunks = &self.chunks[self.runs[part].clone()];
        chunks.iter().filter(|chunk| is_counted(chunk.tensor)).map(|chunk| chunk.elements).sum()
    }

    /// The chunks of a part, to be gone through row by row.
    pub fn chunks(&self, part: usize) -> ChunkCursor {
        ChunkCursor { chunks: Arc::clone(&self.chunks), rest: self.runs[part].clone() }
    }
}

/// Chunks that are still to come.
pub(crate) struct ChunkCursor {
    chunks: Arc<[Chunk]>,
    rest: Range<usize>,
}

impl ChunkCursor {
    /// The elements of the next rows: runs of single tensors.
    pub fn next_rows(&mut self, rows: usize) -> Vec<(usize, Range<u64>)> {
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
