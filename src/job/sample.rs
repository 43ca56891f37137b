//! What each way of quantizing a tensor would cost: bytes exactly, errors from a sample of its rows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow_quant_kernels::{Bits, GroupSize, Isa, PairSums, ParameterDtype, Settings, Weights, quantize};

use super::plan::{Choice, quantized_bytes, refusal};
use super::progress::{Listener, Stage, StageProgress};
use crate::{Model, QuantError, Result, Tensor};

/// Weights of one run of a sample: sixteen groups of the largest size, which the kernels take at once.
const RUN: u64 = 4096;

/// One run is taken of about so many weights.
const ONE_RUN_OF: u64 = 128 * RUN;

/// No tensor has fewer runs, unless it is smaller than they are.
const LEAST_RUNS: u64 = 2;

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
    pub fn kept(tensor: &Tensor) -> Self {
        Self { choice: None, bytes: tensor.bytes, sums: PairSums::default(), squared_error: 0.0 }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    /// For each tensor that was asked for, its costs in the order of the choices.
    pub costs: Vec<(usize, Vec<Cost>)>,
    /// Time of one core for each weight quantized.
    pub per_weight: Duration,
}

/// Every way to quantize: the kernel's settings in all bits and group sizes.
pub(crate) fn all_choices() -> Vec<Choice> {
    let with = |&bits: &Bits| GroupSize::ALL.iter().map(move |&group_size| Choice { bits, group_size });
    Bits::ALL.iter().flat_map(with).collect()
}

/// Measures tensors, given by index with the choices to measure, on so many threads.
///
/// # Errors
/// For a weight in the sample that cannot be quantized, naming the tensor.
pub(crate) async fn sample(
    model: &Arc<Model>,
    wanted: Vec<(usize, Vec<Choice>)>,
    settings: Settings,
    threads: usize,
    listener: Listener,
) -> Result<Sampled> {
    let total = wanted.iter().map(|(index, _)| model.tensors()[*index].elements()).sum();
    let stopped = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let (model, stop) = (Arc::clone(model), Arc::clone(&stopped.0));
    let work = move || {
        let progress = StageProgress::new(Stage::Measuring, total, listener);
        let sampled = on_threads(&model, &wanted, settings, threads, &stop, &progress);
        progress.finish();
        sampled
    };
    let joined = tokio::task::spawn_blocking(work).await;
    joined
        .map_err(|error| QuantError::Quantization { tensor: None, message: format!("a worker ended early: {error}") })?
}

/// Threads that were started for a future end soon after it was dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn on_threads(
    model: &Model,
    wanted: &[(usize, Vec<Choice>)],
    settings: Settings,
    threads: usize,
    stop: &AtomicBool,
    progress: &StageProgress,
) -> Result<Sampled> {
    let isa = Isa::active()?;
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::with_capacity(wanted.len()), Spent::default()));
    let failed = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some((index, choices)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let tensor = &model.tensors()[*index];
            match costs(isa, tensor, choices, settings) {
                Ok((costs, spent)) => {
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.0.push((*index, costs));
                    done.1.add(spent);
                    progress.add(tensor.elements(), &tensor.name);
                }
                Err(error) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work))));
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let (mut costs, spent) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    costs.sort_by_key(|(index, _)| *index);
    Ok(Sampled { costs, per_weight: spent.per_weight() })
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

/// The costs of one tensor.
fn costs(isa: Isa, tensor: &Tensor, choices: &[Choice], settings: Settings) -> Result<(Vec<Cost>, Spent)> {
    let runs = runs(tensor);
    let mut spent = Spent::default();
    let mut costs = Vec::with_capacity(choices.len());
    for &choice in choices {
        let settings = choice.with(settings);
        let (mut sums, mut wide) = (PairSums::default(), 0);
        for &weights in &runs {
            let started = Instant::now();
            let quantized = quantize(isa, weights, settings, None)
                .map_err(|error| refusal(tensor, settings).unwrap_or_else(|| error.into()))?;
            spent.add(Spent { time: started.elapsed(), weights: quantized.errors.n });
            sums = sums + quantized.errors;
            if quantized.parameter_dtype == ParameterDtype::F32 {
                wide += quantized.scales.len() as u64 + quantized.minima.len() as u64;
            }
        }
        let of_all = tensor.elements() as f64 / sums.n.max(1) as f64;
        // Parameters in f32 take twice what those in f16 do.
        let bytes = quantized_bytes(tensor, settings) + (wide as f64 / 2.0 * of_all) as u64;
        costs.push(Cost { choice: Some(choice), bytes, sums, squared_error: sums.sum_ee * of_all });
    }
    tensor.release(0..tensor.elements());
    Ok((costs, spent))
}

/// Runs of whole rows, or of pieces of long ones, at even distances.
fn runs(tensor: &Tensor) -> Vec<Weights<'_>> {
    let (elements, row) = (tensor.elements(), tensor.row_length().max(1));
    let Some(dtype) = tensor.float_dtype() else { return Vec::new() };
    // Of long rows, a piece that no group straddles.
    let length = if row > RUN { RUN } else { RUN.div_ceil(row) * row };
    let count = (elements / ONE_RUN_OF).max(LEAST_RUNS);
    let places: Vec<(u64, u64)> = if count * length >= elements {
        vec![(0, elements)]
    } else {
        (0..count).map(|i| (place(i, count, elements, row, length), length)).collect()
    };
    let size = (tensor.bytes / elements.max(1)) as usize;
    let of = |(start, length): (u64, u64)| {
        let bytes = &tensor.data()[start as usize * size..(start + length) as usize * size];
        Weights::new(dtype, bytes, row.min(length) as usize).ok()
    };
    places.into_iter().filter_map(of).collect()
}

/// The first weight of the run with number `i`.
fn place(i: u64, count: u64, elements: u64, row: u64, length: u64) -> u64 {
    let middle = (u128::from(elements) * u128::from(2 * i + 1) / u128::from(2 * count)) as u64;
    if row <= RUN {
        return (middle / row * row).min(elements - length);
    }
    // Other columns each time, since columns differ.
    let pieces = row / length;
    middle / row * row + (i % pieces) * length
}
