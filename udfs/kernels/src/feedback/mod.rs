//! Rounding with error feedback: the error of one column is made up for in the columns after it. This is LDLQ, which is
//! GPTQ without its inverse (arXiv 2307.13304, 2210.17323, 2507.18553).
//!
//! The mean squared error of a layer's output is tr(E H Eᵀ), with E the errors of its weights and H the second moments
//! E[x xᵀ] of its input. With H = R D Rᵀ, R unit upper triangular, that is Σ_j d_j |e_j + Σ_{k<j} R_kj e_k|², where e_j is
//! column j of E. So columns are rounded one after another,
//!
//! ```text
//! ŵ_j = Q(w_j + Σ_{k<j} R_kj (w_k - ŵ_k)),
//! ```
//!
//! which leaves d_j times the squared rounding error alone. Columns go by falling H_jj: those that matter most are rounded
//! while all others can still make up for them. Q rounds to the levels of the group or block as they are. They were found
//! before, so the order leaves no trace in what is stored.
//!
//! The specification is, for each row: `v = w_j`, then `v = fma(R_kj, e_k, v)` for k = 0, 1, ... j - 1. Rows are lanes, and
//! the order of additions does not depend on how columns are cut into panels, so all instruction sets give the same bytes.

mod cholesky;
mod factor;
mod grids;
mod moments;
mod panels;
#[cfg(test)]
mod tests;

pub use factor::Factor;
pub use moments::MomentBlock;

use self::factor::BlockFactor;
use self::grids::{Grids, Level};
use self::panels::{PANEL, multiply};
use crate::blocks::{Blocks, E2m1, Even, Iq4, Levels, put_codes};
use crate::grid::inverse;
use crate::quantize::{Quantized, pack_bytes};
use crate::simd::{Kernel, LANES, Simd};
use crate::weights::Weights;
use crate::{Isa, KernelError, Result, dequantize, pair_sums};

/// Panels of columns that all rows go through before the next ones, so that the factor's share of them stays in the cache.
const PANELS_AT_ONCE: usize = 8;

/// A sum beyond this in magnitude has lost its way; the weight itself is rounded in its place.
const BEYOND: f32 = 1e37;

/// Rounds weights again, with error feedback, to the levels that they were quantized to: codes and error sums change,
/// scales, minima and zero points stay. `pieces` are weights of one tensor, or of several with the same input, each with what
/// [`quantize`](crate::quantize()) made of it. Every row is rounded by itself, so the result does not depend on how rows are
/// cut into pieces. `wanted` is asked now and then whether the result is still wanted.
///
/// # Errors
/// If pieces differ in settings, rows do not have the factor's channels, and [`KernelError::Cancelled`] once the result is
/// not wanted.
pub fn feed_back(
    isa: Isa,
    factor: &Factor,
    pieces: &mut [(Weights<'_>, &mut Quantized)],
    wanted: impl Fn() -> bool,
) -> Result<()> {
    let Some(settings) = shared(pieces.iter().map(|(_, piece)| piece.settings))? else { return Ok(()) };
    let lengths = pieces.iter().map(|(weights, piece)| (*weights, piece.length));
    let mut rows = Rows::new(isa, factor, lengths, settings.group_size.get())?;
    for (_, piece) in pieces.iter() {
        rows.grids.add_groups(piece);
    }
    let levels = Even { zero: 0.0, top: settings.bits.max_code().into() };
    isa.run(Feed { levels, rows: &mut rows, factor, wanted })?;
    let mut codes = rows.codes.as_slice();
    for (weights, piece) in pieces {
        let (of_piece, rest) = codes.split_at(piece.length);
        codes = rest;
        piece.codes = pack_bytes(of_piece, settings.bits);
        let restored: Vec<u8> =
            dequantize(isa, &piece.as_ref())?.into_iter().flat_map(|weight| weight.to_le_bytes()).collect();
        piece.errors = pair_sums(isa, *weights, Weights::new(crate::Dtype::F32, &restored, weights.row_length())?)?;
    }
    Ok(())
}

/// [`feed_back`] for ggml's blocks.
///
/// # Errors
/// As [`feed_back`], and for types that no search fills.
pub fn feed_back_blocks(
    isa: Isa,
    factor: &Factor,
    pieces: &mut [(Weights<'_>, &mut Blocks)],
    wanted: impl Fn() -> bool,
) -> Result<()> {
    let Some(block_type) = shared(pieces.iter().map(|(_, piece)| piece.block_type))? else { return Ok(()) };
    let Some(level) = Level::of(block_type) else {
        return Err(KernelError::Argument {
            name: "method",
            value: format!("feedback for {block_type}"),
            allowed: "a type whose blocks a search fills",
        });
    };
    let lengths = pieces.iter().map(|(weights, piece)| (*weights, piece.length));
    let mut rows = Rows::new(isa, factor, lengths, block_type.run())?;
    for (_, piece) in pieces.iter() {
        rows.grids.add_blocks(isa, piece, level);
    }
    let feed = (&mut rows, factor, wanted);
    match level {
        Level::Even(top) => Feed::run_on(isa, Even { zero: 0.0, top: top.into() }, feed)?,
        Level::Iq4 => Feed::run_on(isa, Iq4, feed)?,
        Level::E2m1 => Feed::run_on(isa, E2m1, feed)?,
    }
    let mut codes = rows.codes.as_slice();
    for (weights, piece) in pieces {
        let (of_piece, rest) = codes.split_at(piece.length);
        codes = rest;
        put_codes(isa, block_type, of_piece, &mut piece.bytes);
        piece.errors = pair_sums(isa, *weights, Weights::blocks(block_type, &piece.bytes, weights.row_length())?)?;
    }
    Ok(())
}

/// What all pieces have; `None` without pieces.
fn shared<T: PartialEq>(mut of_pieces: impl Iterator<Item = T>) -> Result<Option<T>> {
    let Some(first) = of_pieces.next() else { return Ok(None) };
    if of_pieces.any(|other| other != first) {
        let allowed = "pieces that are stored in one way";
        return Err(KernelError::Argument { name: "pieces", value: "mixed".into(), allowed });
    }
    Ok(Some(first))
}

/// The rows of all pieces, one after another, with the levels that their weights are rounded to.
struct Rows {
    channels: usize,
    weights: Vec<f32>,
    grids: Grids,
    /// A code a byte.
    codes: Vec<u8>,
}

impl Rows {
    fn new<'a>(
        isa: Isa,
        factor: &Factor,
        pieces: impl Iterator<Item = (Weights<'a>, usize)>,
        run: usize,
    ) -> Result<Self> {
        let channels = factor.channels();
        let mut weights = Vec::new();
        for (piece, quantized) in pieces {
            let what = "channels of second moments, one for each weight of a row";
            if piece.row_length() != channels {
                return Err(KernelError::Mismatch { what, found: channels, expected: piece.row_length() });
            }
            if piece.len() != quantized {
                let what = "weights, as many as were quantized";
                return Err(KernelError::Mismatch { what, found: piece.len(), expected: quantized });
            }
            weights.extend(piece.to_f32(isa));
        }
        let codes = vec![0; weights.len()];
        Ok(Self { channels, weights, grids: Grids::new(channels, run), codes })
    }

    fn count(&self) -> usize {
        self.weights.len() / self.channels.max(1)
    }
}

/// Rounds rows with feedback.
struct Feed<'a, L, W> {
    levels: L,
    rows: &'a mut Rows,
    factor: &'a Factor,
    wanted: W,
}

impl<'a, L: Levels, W: Fn() -> bool> Feed<'a, L, W> {
    fn run_on(isa: Isa, levels: L, (rows, factor, wanted): (&'a mut Rows, &'a Factor, W)) -> Result<()> {
        isa.run(Self { levels, rows, factor, wanted })
    }
}

impl<L: Levels, W: Fn() -> bool> Kernel for Feed<'_, L, W> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<()> {
        let Self { levels, rows, factor, wanted } = self;
        for block in factor.blocks() {
            let mut columns = Columns::new(s, block, rows);
            let panels = block.channels().div_ceil(PANEL);
            for first in (0..panels).step_by(PANELS_AT_ONCE) {
                for group in 0..columns.groups {
                    if !wanted() {
                        return Err(KernelError::Cancelled);
                    }
                    for panel in first..panels.min(first + PANELS_AT_ONCE) {
                        columns.round_panel(s, levels, panel, group);
                    }
                }
            }
            columns.write_codes(s, rows);
        }
        Ok(())
    }
}

/// The channels of one block of second moments, of rows in groups of sixteen, one a lane. Vectors of a group are by channel in
/// the block, or by place in the order of rounding.
struct Columns<'a, S: Simd> {
    block: &'a BlockFactor,
    groups: usize,
    /// By channel: the weights.
    weights: Vec<S::F>,
    /// By place: what rounding left of them.
    errors: Vec<S::F>,
    /// By channel: magic codes.
    codes: Vec<S::F>,
    /// By group, then run.
    levels: Vec<RunLevels<S::F>>,
    /// The runs that the block's channels are in: the first, and their number.
    first_run: usize,
    runs: usize,
    run: usize,
}

/// The levels of a run of weights: a code is that of `w * slope + offset`, and stands for `level * scale + base`.
#[derive(Clone, Copy)]
struct RunLevels<F> {
    slope: F,
    offset: F,
    scale: F,
    base: F,
}

impl<'a, S: Simd> Columns<'a, S> {
    #[inline(always)]
    fn new(s: S, block: &'a BlockFactor, rows: &Rows) -> Self {
        let (size, run) = (block.channels(), rows.grids.run());
        let groups = rows.count().div_ceil(LANES);
        let first_run = block.start() / run;
        let runs = (block.start() + size).div_ceil(run) - first_run;
        let zero = s.splat(0.0);
        let mut columns = Self {
            block,
            groups,
            weights: vec![zero; groups * size],
            errors: vec![zero; groups * size.next_multiple_of(PANEL)],
            codes: vec![zero; groups * size],
            levels: Vec::with_capacity(groups * runs),
            first_run,
            runs,
            run,
        };
        for group in 0..groups {
            // A group that is not full repeats the last row.
            let last = rows.count() - 1;
            let row: [usize; LANES] = std::array::from_fn(|lane| (group * LANES + lane).min(last));
            columns.transpose(s, rows, group, &row);
            for k in first_run..first_run + runs {
                let (scale, base) = rows.grids.at(&row, k);
                let (scale, base) = (s.load_lanes(&scale), s.load_lanes(&base));
                let slope = inverse(s, scale);
                let offset = s.sub(zero, s.mul(base, slope));
                columns.levels.push(RunLevels { slope, offset, scale, base });
            }
        }
        columns
    }

    #[inline(always)]
    fn transpose(&mut self, s: S, rows: &Rows, group: usize, row: &[usize; LANES]) {
        let (size, start) = (self.block.channels(), self.block.start());
        let out = &mut self.weights[group * size..][..size];
        for (k, out) in out.chunks_mut(LANES).enumerate() {
            let mut lines = [s.splat(0.0); LANES];
            for (line, &row) in lines.iter_mut().zip(row) {
                let weights = &rows.weights[row * rows.channels + start + k * LANES..][..out.len()];
                *line = match weights.first_chunk() {
                    Some(weights) => s.load_lanes(weights),
                    None => s.load_lanes(&std::array::from_fn(|i| weights.get(i).copied().unwrap_or_default())),
                };
            }
            let columns = s.transpose(&lines);
            out.copy_from_slice(&columns[..out.len()]);
        }
    }

    /// Rounds the columns of a panel, in their order.
    #[inline(always)]
    fn round_panel<L: Levels>(&mut self, s: S, levels: L, panel: usize, group: usize) {
        let size = self.block.channels();
        let (weights, codes) = (&self.weights[group * size..][..size], &mut self.codes[group * size..][..size]);
        let of_run = &self.levels[group * self.runs..][..self.runs];
        let padded = size.next_multiple_of(PANEL);
        let errors = &mut self.errors[group * padded..][..padded];
        let (first, count) = (panel * PANEL, PANEL.min(size - panel * PANEL));
        let channels = &self.block.order()[first..first + count];
        let factors = self.block.panel(panel);
        let mut sums = [s.splat(0.0); PANEL];
        for (sum, &channel) in sums.iter_mut().zip(channels) {
            *sum = weights[channel as usize];
        }
        let mut sums = multiply(s, factors, &errors[..first], sums);
        for (t, &channel) in channels.iter().enumerate() {
            let channel = channel as usize;
            for u in 0..t {
                sums[t] = s.fma(s.splat(factors[(first + u) * PANEL + t]), errors[first + u], sums[t]);
            }
            let within = s.lt(s.abs(sums[t]), s.splat(BEYOND));
            let wanted = s.select(within, sums[t], weights[channel]);
            let RunLevels { slope, offset, scale, base } =
                of_run[(self.block.start() + channel) / self.run - self.first_run];
            let y = s.fma(wanted, slope, offset);
            // The code of the level, not of y: between two levels they may be told apart in different ways.
            let level = levels.level(s, y);
            codes[channel] = levels.code(s, level);
            errors[first + t] = s.sub(weights[channel], s.fma(level, scale, base));
        }
    }

    #[inline(always)]
    fn write_codes(&self, s: S, rows: &mut Rows) {
        let (size, start, count) = (self.block.channels(), self.block.start(), rows.count());
        // A block without channels has no codes.
        for (group, codes) in self.codes.chunks(size.max(1)).enumerate() {
            for (channel, &codes) in codes.iter().enumerate() {
                let codes = s.to_array(codes);
                for (row, code) in (group * LANES..count).zip(codes) {
                    rows.codes[row * rows.channels + start + channel] = code.to_bits() as u8;
                }
            }
        }
    }
}
