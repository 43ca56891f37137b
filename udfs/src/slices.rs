//! Kernels over rows of any length, slice by slice, so that a query can be cancelled within a row.

use std::ops::Add;

use arrow_quant_kernels::{
    Dtype, Encoding, Isa, KernelError, PairSums, Stats, Weights, pair_sums, product_sums, scale_channels, stats,
    to_f32, weighted_sum,
};

use crate::cancellation::Cancellation;

/// Weights of a slice: milliseconds of work, and no less than a chunk of a model, so that the sums of chunks are those of one
/// slice. A multiple of the length of every block.
const SLICE: usize = 1 << 20;

/// The weights in slices: whole rows, or pieces of a long row, each with the index of its first weight.
fn slices<'a>(weights: Weights<'a>) -> impl Iterator<Item = (usize, Weights<'a>)> {
    let (length, row_length) = (weights.len(), weights.row_length().max(1));
    let (span, piece) = if row_length > SLICE {
        (row_length, SLICE)
    } else {
        let rows = SLICE / row_length * row_length;
        (rows, rows)
    };
    (0..length).step_by(span).flat_map(move |first| {
        let end = length.min(first + span);
        (first..end).step_by(piece).map(move |start| {
            let part = weights.part(start, piece.min(end - start));
            (start, part.expect("a slice is whole rows, or a piece of a row that is a whole number of blocks"))
        })
    })
}

/// The sum of what a kernel gives for pairs of slices of `SLICE` weights, whatever their rows.
fn summed<T: Add<Output = T> + Default>(
    a: Weights<'_>,
    b: Weights<'_>,
    cancellation: &Cancellation,
    kernel: impl Fn(Weights<'_>, Weights<'_>) -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    if a.len() != b.len() || a.len() <= SLICE {
        return kernel(a, b);
    }
    let (a, b) = (as_one_row(a)?, as_one_row(b)?);
    let mut sum = T::default();
    for ((_, a), (_, b)) in slices(a).zip(slices(b)) {
        go_on(cancellation)?;
        sum = sum + kernel(a, b)?;
    }
    Ok(sum)
}

/// The weights of a tensor value as a single row: floats or blocks.
fn as_one_row(weights: Weights<'_>) -> Result<Weights<'_>, KernelError> {
    match weights.encoding() {
        Encoding::Float(dtype) => Weights::one_row(dtype, weights.bytes()),
        Encoding::Block(block_type) => Weights::blocks(block_type, weights.bytes(), weights.len()),
        Encoding::Fp8(_) | Encoding::Grouped(..) => Ok(weights),
    }
}

fn go_on(cancellation: &Cancellation) -> Result<(), KernelError> {
    if cancellation.is_cancelled() { Err(KernelError::Cancelled) } else { Ok(()) }
}

/// All sums over pairs of weights.
pub(crate) fn pair_sums_of(
    isa: Isa,
    a: Weights<'_>,
    b: Weights<'_>,
    cancellation: &Cancellation,
) -> Result<PairSums, KernelError> {
    summed(a, b, cancellation, |a, b| pair_sums(isa, a, b))
}

/// The sums that cosine similarity needs.
pub(crate) fn product_sums_of(
    isa: Isa,
    a: Weights<'_>,
    b: Weights<'_>,
    cancellation: &Cancellation,
) -> Result<PairSums, KernelError> {
    summed(a, b, cancellation, |a, b| product_sums(isa, a, b))
}

/// The statistics of weights.
pub(crate) fn stats_of(isa: Isa, weights: Weights<'_>, cancellation: &Cancellation) -> Result<Stats, KernelError> {
    summed(weights, weights, cancellation, |weights, _| Ok(stats(isa, weights)))
}

/// The weights as f32.
pub(crate) fn to_f32_of(isa: Isa, weights: Weights<'_>, cancellation: &Cancellation) -> Result<Vec<f32>, KernelError> {
    if weights.len() <= SLICE {
        return Ok(to_f32(isa, weights));
    }
    let mut floats = Vec::with_capacity(weights.len());
    for (_, slice) in slices(weights) {
        go_on(cancellation)?;
        floats.extend_from_slice(&to_f32(isa, slice));
    }
    Ok(floats)
}

/// The weights times the factors of their channels.
pub(crate) fn scale_channels_of(
    isa: Isa,
    weights: Weights<'_>,
    factors: &[f32],
    cancellation: &Cancellation,
) -> Result<Vec<f32>, KernelError> {
    let row_length = weights.row_length();
    if weights.len() <= SLICE || factors.len() != row_length {
        return scale_channels(isa, weights, factors);
    }
    let mut floats = Vec::with_capacity(weights.len());
    for (start, slice) in slices(weights) {
        go_on(cancellation)?;
        let channel = start % row_length;
        let scaled = scale_channels(isa, slice, &factors[channel..channel + slice.row_length()]);
        floats.extend_from_slice(&scaled.map_err(|error| of_channel(error, channel))?);
    }
    Ok(floats)
}

/// The error of a slice as one of all channels.
fn of_channel(error: KernelError, channel: usize) -> KernelError {
    match error {
        KernelError::Factor { index, value } => KernelError::Factor { index: channel + index, value },
        other => other,
    }
}

/// `a · x + b · y`, with the dtype of its bytes.
pub(crate) fn weighted_sum_of(
    isa: Isa,
    (a, x): (f32, Weights<'_>),
    (b, y): (f32, Weights<'_>),
    cancellation: &Cancellation,
) -> Result<(Dtype, Vec<u8>), KernelError> {
    if x.len() != y.len() || x.len() <= SLICE {
        return weighted_sum(isa, a, x, b, y);
    }
    let (mut dtype, mut bytes) = (Dtype::F32, Vec::with_capacity(x.bytes().len()));
    for ((_, x), (_, y)) in slices(as_one_row(x)?).zip(slices(as_one_row(y)?)) {
        go_on(cancellation)?;
        let (of_slice, sums) = weighted_sum(isa, a, x, b, y)?;
        dtype = of_slice;
        bytes.extend_from_slice(&sums);
    }
    Ok((dtype, bytes))
}

#[cfg(test)]
mod tests {
    use arrow_quant_kernels::BlockType;

    use super::*;

    /// Floats of several slices: rows that are longer than one, or shorter and not a divisor of it.
    fn long() -> Vec<u8> {
        (0..3 * SLICE + 3).flat_map(|i| ((i % 1013) as f32 * 0.37).sin().to_le_bytes()).collect()
    }

    #[test]
    fn slices_give_what_the_whole_gives() {
        let (isa, bytes, never) = (Isa::active().unwrap(), long(), Cancellation::default());
        let length = bytes.len() / 4;
        for row_length in [length, length / 3] {
            let weights = Weights::new(Dtype::F32, &bytes, row_length).unwrap();
            assert_eq!(to_f32_of(isa, weights, &never).unwrap(), to_f32(isa, weights));
            let factors: Vec<f32> = (0..row_length).map(|i| 1.0 + (i % 7) as f32).collect();
            let scaled = scale_channels_of(isa, weights, &factors, &never).unwrap();
            assert_eq!(scaled, scale_channels(isa, weights, &factors).unwrap());
            let sum = weighted_sum_of(isa, (0.3, weights), (0.7, weights), &never).unwrap();
            assert_eq!(sum, weighted_sum(isa, 0.3, weights, 0.7, weights).unwrap());
            let (parts, whole) = (stats_of(isa, weights, &never).unwrap(), stats(isa, weights));
            assert_eq!((parts.n, parts.zeros, parts.min, parts.max), (whole.n, whole.zeros, whole.min, whole.max));
            assert!((parts.sum_squares - whole.sum_squares).abs() <= 1e-9 * whole.sum_squares);
            let (parts, whole) = (pair_sums_of(isa, weights, weights, &never), pair_sums(isa, weights, weights));
            assert!((parts.unwrap().sum_aa - whole.unwrap().sum_aa).abs() <= 1e-6);
            assert_eq!(product_sums_of(isa, weights, weights, &never).unwrap().cosine_similarity(), Some(1.0));
        }
    }

    /// Blocks of several slices: rows that are longer than one, or shorter and not a divisor of it.
    fn long_blocks() -> Vec<u8> {
        (0..3 * SLICE / 32 + 3).flat_map(|i| [[0, 0x3c].as_slice(), &[(i % 251) as u8; 16]].concat()).collect()
    }

    #[test]
    fn slices_of_blocks_give_what_the_whole_gives() {
        let (isa, bytes, never) = (Isa::active().unwrap(), long_blocks(), Cancellation::default());
        let length = bytes.len() / 18 * 32;
        for row_length in [length, length / 3] {
            let blocks = Weights::blocks(BlockType::Q4_0, &bytes, row_length).unwrap();
            let floats = to_f32_of(isa, blocks, &never).unwrap();
            assert_eq!(floats, to_f32(isa, blocks));
            let floats: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            let floats = Weights::new(Dtype::F32, &floats, 1).unwrap();
            // Whatever the rows of the other.
            let sums = pair_sums_of(isa, blocks, floats, &never).unwrap();
            assert_eq!((sums.n, sums.sum_ee), (length as u64, 0.0));
            assert_eq!(sums, pair_sums_of(isa, floats, blocks, &never).unwrap());
            assert_eq!(stats_of(isa, blocks, &never).unwrap(), stats_of(isa, floats, &never).unwrap());
            assert_eq!(product_sums_of(isa, floats, blocks, &never).unwrap().cosine_similarity(), Some(1.0));
            let sum = weighted_sum_of(isa, (0.3, blocks), (0.7, floats), &never).unwrap();
            assert_eq!(sum, weighted_sum_of(isa, (0.3, floats), (0.7, blocks), &never).unwrap());
            let factors: Vec<f32> = (0..row_length).map(|i| 1.0 + (i % 7) as f32).collect();
            let scaled = scale_channels_of(isa, blocks, &factors, &never).unwrap();
            assert_eq!(scaled, scale_channels(isa, blocks, &factors).unwrap());
        }
    }

    #[test]
    fn a_wrong_factor_far_back_has_its_index() {
        let (isa, bytes) = (Isa::active().unwrap(), long());
        let weights = Weights::one_row(Dtype::F32, &bytes).unwrap();
        let mut factors = vec![1.0; weights.len()];
        factors[2 * SLICE + 5] = -1.0;
        let error = scale_channels_of(isa, weights, &factors, &Cancellation::default()).unwrap_err();
        assert_eq!(error, KernelError::Factor { index: 2 * SLICE + 5, value: -1.0 });
    }

    #[test]
    fn what_is_cancelled_ends_within_a_row() {
        let (isa, bytes, cancelled) = (Isa::active().unwrap(), long(), Cancellation::default());
        cancelled.cancel();
        let blocks = long_blocks();
        let blocks = Weights::blocks(BlockType::Q4_0, &blocks, blocks.len() / 18 * 32).unwrap();
        for weights in [Weights::one_row(Dtype::F32, &bytes).unwrap(), blocks] {
            let ends = [
                to_f32_of(isa, weights, &cancelled).err(),
                stats_of(isa, weights, &cancelled).err(),
                pair_sums_of(isa, weights, weights, &cancelled).err(),
                product_sums_of(isa, weights, weights, &cancelled).err(),
                weighted_sum_of(isa, (1.0, weights), (1.0, weights), &cancelled).err(),
                scale_channels_of(isa, weights, &vec![1.0; weights.len()], &cancelled).err(),
            ];
            assert!(ends.iter().all(|end| *end == Some(KernelError::Cancelled)), "{ends:?}");
        }
    }
}
