//! Tensors in memory: quantized and restored without files or a session, cut and stored as those of models are.

mod arrow_arrays;
mod rows;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use arrow::array::{AsArray, StructArray};
use arrow::buffer::Buffer;
use arrow_quant_kernels::{Dtype, Isa, KernelError, PairSums, Quantized, Settings, Weights, quantize};
use arrow_quant_udfs::{Cancellation, QuantizedColumn, QuantizedValue, error_sums, quantized_array};

pub use rows::quantized_row_schema;

use arrow_quant_formats::row_length;

use crate::tables::cut;
use crate::{QuantError, Result, ShapeProblem};

/// Weights that are worth another thread.
const THREAD: u64 = 1 << 18;

/// The elements of a tensor in memory.
#[derive(Debug, Clone)]
pub struct TensorData {
    dtype: Dtype,
    shape: Vec<i64>,
    /// Little-endian elements, row-major, one buffer after another; whole elements in each.
    buffers: Vec<Buffer>,
}

impl TensorData {
    /// A tensor of a dtype and shape. `buffers` are its elements, little-endian and row-major, in one piece or several, at
    /// any alignment; they are not copied.
    ///
    /// # Errors
    /// If the bytes are not those of the shape's elements, or a buffer ends within an element.
    pub fn new(dtype: Dtype, shape: Vec<i64>, buffers: Vec<Buffer>) -> Result<Self> {
        let elements = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(u64::try_from(n).ok()?));
        let expected = elements.and_then(|elements| elements.checked_mul(dtype.size() as u64));
        let found: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if expected != Some(found) || buffers.iter().any(|buffer| buffer.len() % dtype.size() != 0) {
            return Err(QuantError::shape(None, ShapeProblem::Bytes { found, dtype, shape }));
        }
        Ok(Self { dtype, shape, buffers })
    }

    /// Elements in all.
    pub fn elements(&self) -> u64 {
        self.buffers.iter().map(|buffer| (buffer.len() / self.dtype.size()) as u64).sum()
    }

    /// Quantizes the tensor on as many threads, each chunk as `quantize` in SQL would; `name` is for messages.
    ///
    /// # Errors
    /// If a weight is NaN, infinite or too large, naming its index.
    pub fn quantize(&self, name: &str, settings: Settings, threads: usize) -> Result<QuantizedData> {
        let isa = Isa::active()?;
        let chunks = self.chunks();
        let threads = threads.min((self.elements() / THREAD) as usize).max(1);
        let run = |chunks: &[Range<u64>]| -> Result<Vec<Quantized>, KernelError> {
            chunks.iter().map(|chunk| self.quantize_chunk(isa, chunk, settings)).collect()
        };
        let done = in_runs(&chunks, threads, run).map_err(|error| {
            let prefix = if name.is_empty() { String::new() } else { format!("{name}: ") };
            QuantError::Quantization {
                tensor: Some(name.to_string()).filter(|name| !name.is_empty()),
                message: format!("{prefix}{error}"),
            }
        })?;
        let errors = done.iter().fold(PairSums::default(), |sum, chunk| sum + chunk.errors);
        let values = quantized_array(done.into_iter().map(|chunk| Some(QuantizedValue::Groups(chunk))).collect())?;
        Ok(QuantizedData {
            dtype: self.dtype,
            shape: self.shape.clone(),
            settings,
            chunks,
            values: values.as_struct().clone(),
            errors,
        })
    }

    /// Where the tensor is cut. One without elements is one chunk, so that it does not get lost.
    fn chunks(&self) -> Vec<Range<u64>> {
        let elements = self.elements();
        let cuts: Vec<_> = cut(elements, row_length(&self.shape)).map(|(start, n)| start..start + n).collect();
        if cuts.is_empty() { std::iter::once(0..elements).collect() } else { cuts }
    }

    fn quantize_chunk(&self, isa: Isa, chunk: &Range<u64>, settings: Settings) -> Result<Quantized, KernelError> {
        let bytes = self.bytes(chunk);
        let row = row_length(&self.shape).min(chunk.end - chunk.start) as usize;
        let weights = Weights::new(self.dtype, &bytes, row)?;
        quantize(isa, weights, settings, None).map_err(|error| error.within(chunk.start as usize))
    }

    /// The bytes of some elements; copied only where they are in more than one buffer.
    fn bytes(&self, elements: &Range<u64>) -> Cow<'_, [u8]> {
        let size = self.dtype.size();
        let (mut first, end) = (elements.start as usize * size, elements.end as usize * size);
        let mut copied = Vec::new();
        let mut start = 0;
        for buffer in &self.buffers {
            let range = start..start + buffer.len();
            start = range.end;
            if first >= range.end {
                continue;
            }
            let found = &buffer[first - range.start..end.min(range.end) - range.start];
            if end <= range.end && copied.is_empty() {
                return Cow::Borrowed(found);
            }
            copied.extend_from_slice(found);
            first = range.end;
            if end <= first {
                break;
            }
        }
        Cow::Owned(copied)
    }
}

/// A quantized tensor in memory.
#[derive(Debug, Clone)]
pub struct QuantizedData {
    dtype: Dtype,
    shape: Vec<i64>,
    settings: Settings,
    /// The elements of each chunk.
    chunks: Vec<Range<u64>>,
    /// One quantized value a chunk.
    values: StructArray,
    errors: PairSums,
}

impl QuantizedData {
    /// The dtype it had.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// What it was quantized with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Elements in all.
    pub fn elements(&self) -> u64 {
        self.chunks.last().map_or(0, |chunk| chunk.end)
    }

    /// Bytes of codes and parameters.
    pub fn bytes(&self) -> u64 {
        let columns = ["codes", "scales", "minima", "zero_points"].map(|name| self.values.column_by_name(name));
        let values = columns.into_iter().flatten().flat_map(|column| column.as_binary_view().iter().flatten());
        values.map(|value| value.len() as u64).sum()
    }

    /// What was lost.
    pub fn errors(&self) -> PairSums {
        self.errors
    }

    /// Restores the weights, as f32, on as many threads.
    ///
    /// # Errors
    /// If `out` has not as many elements, or the values contradict themselves.
    pub fn dequantize_into(&self, out: &mut [f32], threads: usize) -> Result<()> {
        if out.len() as u64 != self.elements() {
            let problem = ShapeProblem::Room { found: out.len() as u64, expected: self.elements() };
            return Err(QuantError::shape(None, problem));
        }
        let isa = Isa::active()?;
        let values = QuantizedColumn::try_new("dequantize", &self.values)?;
        let mut work = Vec::with_capacity(self.chunks.len());
        let mut rest = out;
        for (row, chunk) in self.chunks.iter().enumerate() {
            let (here, after) = rest.split_at_mut((chunk.end - chunk.start) as usize);
            work.push((row, here));
            rest = after;
        }
        let threads = threads.min((self.elements() / THREAD) as usize).max(1);
        let per_thread = work.len().div_ceil(threads).max(1);
        let restore = |run: &mut [(usize, &mut [f32])]| {
            run.iter_mut().try_for_each(|(row, out)| restore_row(isa, &values, *row, out))
        };
        share(work.chunks_mut(per_thread), threads, restore)
    }
}

fn restore_row(isa: Isa, values: &QuantizedColumn, row: usize, out: &mut [f32]) -> Result<()> {
    let Some(value) = values.row(row)? else {
        return Err(QuantError::shape(None, ShapeProblem::NullChunk { row }));
    };
    let restored = value.dequantize(isa, &Cancellation::default()).map_err(|error| QuantError::Quantization {
        tensor: None,
        message: format!("row {row} is no quantized value: {error}"),
    })?;
    if restored.len() != out.len() {
        let problem = ShapeProblem::ChunkLength { row, found: restored.len(), expected: out.len() };
        return Err(QuantError::shape(None, problem));
    }
    out.copy_from_slice(&restored);
    Ok(())
}

/// Does work over items, in as many runs of them, one a thread; gives what each item became, in order.
fn in_runs<T: Sync, U: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&[T]) -> Result<Vec<U>, E> + Sync,
) -> Result<Vec<U>, E> {
    let runs = items.chunks(items.len().div_ceil(threads).max(1));
    let mut made: Vec<_> = runs.clone().map(|_| Vec::new()).collect();
    share(runs.zip(&mut made), threads, |(run, made)| {
        *made = work(run)?;
        Ok(())
    })?;
    Ok(made.into_iter().flatten().collect())
}

/// Does each piece of some work, on so many threads with this one; on fewer where the system refuses more.
fn share<W: Send, E: Send>(
    work: impl Iterator<Item = W> + Send,
    threads: usize,
    one: impl Fn(W) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let work = Mutex::new(work);
    let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(piece) = next() {
            one(piece)?;
        }
        Ok(())
    };
    // Threads of its own, not a pool's: a pool's do not outlive a fork, which Python's multiprocessing does.
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, run).ok();
        let others: Vec<_> = (1..threads).map_while(start).collect();
        let own = run();
        let others = others.into_iter().try_for_each(joined);
        own.and(others)
    })
}

/// What a thread came to; its panic goes on here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The error sums of values, added.
fn summed(values: &StructArray) -> Result<PairSums> {
    Ok(error_sums(values)?.into_iter().flatten().fold(PairSums::default(), |sum, part| sum + part))
}
