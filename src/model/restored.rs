//! Tensors that are computed when they are read: what other programs quantized, as F32.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_quant_formats::restore::{Parts, Recipe};
use arrow_quant_stores::{Identity, Store, StoreError};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, BoxFuture};

/// Bytes of an F32.
const SIZE: u64 = 4;

/// Where a stored tensor is.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub store: Arc<dyn Store>,
    pub range: Range<u64>,
}

/// Stored tensors by their places in a component.
#[derive(Debug, Clone, Default)]
pub(super) struct StoredParts(pub BTreeMap<usize, Part>);

impl Parts for StoredParts {
    type Bytes = Bytes;
    type Error = StoreError;

    fn read(&self, part: usize, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let Some(Part { store, range }) = self.0.get(&part) else { return Ok(Vec::new()) };
        let absolute: Vec<_> =
            ranges.iter().map(|within| range.start + within.start..range.start + within.end).collect();
        store.read_each_now(&absolute)
    }
}

/// A tensor as a file of its own, which begins with its first element: F32, little-endian, row by row. What is read is computed
/// of the stored tensors; its identity is that of the file that has the codes.
#[derive(Debug)]
pub(super) struct RestoredStore {
    identity: Identity,
    recipe: Recipe,
    parts: StoredParts,
    /// Where the codes are.
    codes: Part,
    /// Bytes of all elements.
    bytes: u64,
}

impl RestoredStore {
    /// The tensor of so many elements that `recipe` makes of some of `parts`. `None` if one is not among them.
    pub(super) fn new(recipe: Recipe, parts: &StoredParts, codes: usize, elements: u64) -> Option<Self> {
        let own = recipe.parts().into_iter().map(|part| Some((part, parts.0.get(&part)?.clone())));
        let own = StoredParts(own.collect::<Option<_>>()?);
        let codes = parts.0.get(&codes)?.clone();
        let identity = codes.store.identity().clone();
        Some(Self { identity, recipe, parts: own, codes, bytes: elements.checked_mul(SIZE)? })
    }

    /// The elements of a range of bytes, and where the range begins among their bytes.
    fn elements(&self, range: &Range<u64>) -> Result<(Range<u64>, usize), StoreError> {
        if range.start > range.end || range.end > self.bytes {
            let (path, range) = (self.identity.path.clone(), range.clone());
            return Err(StoreError::Range { path, range, length: self.bytes });
        }
        Ok((range.start / SIZE..range.end.div_ceil(SIZE), (range.start % SIZE) as usize))
    }

    fn compute(&self, range: &Range<u64>) -> Result<Bytes, StoreError> {
        let (elements, skipped) = self.elements(range)?;
        let values = self.recipe.restore(&self.parts, elements)?;
        let bytes: Vec<[u8; SIZE as usize]> = values.into_iter().map(f32::to_le_bytes).collect();
        let length = (range.end - range.start) as usize;
        Ok(Bytes::from(bytes.into_flattened()).slice(skipped..skipped + length))
    }
}

impl Store for RestoredStore {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read<'a>(&'a self, ranges: &'a [Range<u64>]) -> BoxFuture<'a, Result<Vec<Bytes>, StoreError>> {
        // Computed at once, by the thread that asks, as functions over weights are.
        future::ready(self.read_each_now(ranges)).boxed()
    }

    fn read_now(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.compute(&range)
    }

    fn read_each_now(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        ranges.iter().map(|range| self.compute(range)).collect()
    }

    /// Releases the codes of whole rows. Where those of a row are all over the stored tensor, they are released with the last row.
    fn release(&self, range: Range<u64>) {
        let is_end = range.end >= self.bytes;
        let elements = range.start.div_ceil(SIZE)..range.end / SIZE;
        match self.recipe.bytes_of(elements) {
            Some((part, bytes)) => {
                if let Some(Part { store, range }) = self.parts.0.get(&part) {
                    store.release(range.start + bytes.start..range.start + bytes.end);
                }
            }
            None if is_end => self.codes.store.release(self.codes.range.clone()),
            None => {}
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        let mut checked: Vec<&Arc<dyn Store>> = Vec::new();
        for Part { store, .. } in self.parts.0.values() {
            if !checked.iter().any(|other| Arc::ptr_eq(other, store)) {
                store.check()?;
                checked.push(store);
            }
        }
        Ok(())
    }
}
