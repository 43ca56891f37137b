//! What each way of quantizing a tensor would cost: bytes exactly, errors from a sample of its rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_quant_kernels::{Isa, PairSums, Weights};

use super::choice::{Choice, JobSettings};
use super::tensors::{quantized_bytes, refusal};
use crate::report::{Listener, Stage, StageProgress};
use crate::workers::on_threads;
use crate::{Model, Result, Tensor};

/// One weight is sampled of so many.
const ONE_OF: u64 = 128;

/// Weights that are sampled at least, unless there are not many more.
const LEAST: u64 = 8192;

/// Weights that are taken from one place: a multiple of every group size.
const PIECE: u64 = 1024;

/// With it, pieces of long rows come from all columns in turn.
const PRIME: u64 = 7919;

/// What quantizing a tensor in one way comes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// `None` to keep it.
    pub choice: Option<Choice>,
    /// Of codes and parameters, or of kept elements.
    pub bytes: u64,
    /// Error sums of the sample.
    pub sums: PairSums,
    /// Of all weights, estimated from the sample.
    pub squared_error: f64,
}

impl Cost {
    /// That of keeping a tensor as it is.
    pub(crate) fn kept(tensor: &Tensor) -> Self {
        Self { choice: None, bytes: tensor.bytes, sums: PairSums::default(), squared_error: 0.0 }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    /// For each tensor that was asked for, its costs in the order of the choices that its rows allow.
    pub costs: Vec<(usize, Vec<Cost>)>,
    /// Time of one core for each weight quantized.
    pub per_weight: Duration,
}

/// Tensors to measure.
pub(crate) struct Sampling {
    pub model: Arc<Model>,
    /// By index, with the choices to measure.
    pub wanted: Vec<(usize, Vec<Choice>)>,
    pub settings: JobSettings,
    pub threads: usize,
}

impl Sampling {
    /// Measures the tensors.
    ///
    /// # Errors
    /// For a weight in the sample that cannot be quantized, naming the tensor.
    pub(crate) async fn run(self, listener: Listener) -> Result<Sampled> {
        let isa = Isa::active()?;
        let total = self.wanted.iter().map(|(index, _)| self.model.tensors()[*index].elements()).sum();
        let progress = Arc::new(StageProgress::new(Stage::Measuring, total, listener));
        let (threads, count, counted) = (self.threads, self.wanted.len(), Arc::clone(&progress));
        let measured = on_threads(threads, count, move |at| {
            let (index, choices) = &self.wanted[at];
            let tensor = &self.model.tensors()[*index];
            let (costs, spent) = costs(isa, tensor, choices, self.settings)?;
            counted.add(tensor.elements(), &tensor.name);
            Ok((*index, costs, spent))
        });
        let mut sampled = Sampled::default();
        let mut all = Spent::default();
        for (index, costs, spent) in measured.await? {
            sampled.costs.push((index, costs));
            all.add(spent);
        }
        progress.finish();
        Ok(Sampled { per_weight: all.per_weight(), ..sampled })
    }
}

/// Time in the kernels.
#[derive(Debug, Default)]
struct Spent {
    time: Duration,
    weights: u64,
}

impl Spent {
    fn add(&mut self, other: Self) {
        self.time += other.time;
        self.weights += other.weights;
    }

    fn per_weight(&self) -> Duration {
        self.time.div_f64(self.weights.max(1) as f64)
    }
}

/// The costs of one tensor, for choices that fit its rows.
fn costs(isa: Isa, tensor: &Tensor, choices: &[Choice], settings: JobSettings) -> Result<(Vec<Cost>, Spent)> {
    let mut spent = Spent::default();
    let Some(dtype) = tensor.float_dtype() else { return Ok((Vec::new(), spent)) };
    // Gathered, so that the kernels have many groups at a time, and the pages are looked at once for all choices.
    let (bytes, row) = gather(tensor)?;
    tensor.release(0..tensor.elements());
    let weights = Weights::new(dtype, &bytes, row)?;
    let of_all = tensor.elements() as f64 / weights.len().max(1) as f64;
    let mut costs = Vec::with_capacity(choices.len());
    for &choice in choices {
        let started = Instant::now();
        let quantized = choice
            .quantize(isa, weights, settings, None)
            .map_err(|error| refusal(tensor, choice, settings).unwrap_or_else(|| error.into()))?;
        let sums = quantized.errors();
        spent.add(Spent { time: started.elapsed(), weights: sums.n });
        let wide = quantized.bytes_beyond_f16() as f64 * of_all;
        let bytes = quantized_bytes(tensor, choice, settings.scheme) + wide as u64;
        costs.push(Cost { choice: Some(choice), bytes, sums, squared_error: sums.sum_ee * of_all });
    }
    Ok((costs, spent))
}

/// Rows from all over a tensor, or pieces of long ones, at most [`PIECE`] weights each; and the weights of each.
fn gather(tensor: &Tensor) -> Result<(Vec<u8>, usize)> {
    let (elements, row) = (tensor.elements(), tensor.row_length().max(1));
    let wanted = (elements / ONE_OF).max(LEAST);
    if wanted + LEAST >= elements {
        return Ok((tensor.data()?.to_vec(), row as usize));
    }
    // A piece starts where a group does, of whatever size.
    let piece = row.min(PIECE);
    let (pieces_of_row, count) = (row / piece, wanted.div_ceil(piece));
    let size = (tensor.bytes / elements) as usize;
    let mut bytes = Vec::with_capacity((count * piece) as usize * size);
    for i in 0..count {
        let first = place(i, count, elements / row) * row + i * PRIME % pieces_of_row * piece;
        bytes.extend_from_slice(&tensor.read(first..first + piece)?);
    }
    Ok((bytes, piece as usize))
}

/// The row of the piece with number `i`: each in a stretch of its own, and there at another place each time, for models
/// may have structure at even distances.
fn place(i: u64, count: u64, rows: u64) -> u64 {
    /// The golden ratio, of which multiples lie evenly in the unit interval.
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let within = (i as f64 * GOLDEN).fract();
    (((i as f64 + within) / count as f64 * rows as f64) as u64).min(rows - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_all_over_the_tensor_and_at_no_even_distance() {
        for (count, rows) in [(21, 384), (8, 1_000_000), (500, 501)] {
            let places: Vec<u64> = (0..count).map(|i| place(i, count, rows)).collect();
            assert!(places.is_sorted() && *places.last().unwrap() < rows);
            let stretch = rows as f64 / count as f64;
            for (i, place) in places.iter().enumerate() {
                assert!((*place as f64 - i as f64 * stretch).abs() <= stretch + 1.0, "{places:?}");
            }
        }
        let places: Vec<u64> = (0..64).map(|i| place(i, 64, 1 << 20)).collect();
        let odd = places.iter().filter(|place| *place % 128 < 64).count();
        assert!((16..48).contains(&odd), "{odd} of 64 in the first half of a period");
    }
}
