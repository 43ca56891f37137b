//! One block: groups in batches of sixteen, each batch ranged, fitted, coded and measured while it is in L1.

use std::marker::PhantomData;

use crate::Isa;
use crate::assign::{BatchSums, Grids, Losses, assign};
use crate::compare::PairSums;
use crate::grid::{Grid, Range, Rules, inverse};
use crate::quantize::{Block, MAGNITUDE_LIMIT, Slice, Stop};
use crate::search::{Groups, Search};
use crate::simd::{Element, Kernel, LANES, Simd, Width, for_dtype, for_width, prefetch};
use crate::stretch::Stretch;
use crate::types::ParameterDtype;
use crate::weights::Floats;

/// How far ahead weights are fetched. A batch is read twice, with work between, which leaves the hardware's prefetchers
/// idle at each batch's start: without this, minmax spends two fifths of its time waiting there.
const AHEAD: usize = 8192;

/// Quantizes a block into its buffers.
pub(crate) fn quantize_block(
    isa: Isa,
    slice: &Slice<'_>,
    block: Block<'_>,
    stored: ParameterDtype,
) -> Result<PairSums, Stop> {
    let mut scratch = Vec::new();
    let weights = block.weights.floats(isa, &mut scratch);
    let run = Run { slice, weights, block, rules: Rules::new(&slice.settings, stored) };
    for_dtype!(weights.dtype, E => for_width!(slice.code_width(), W => isa.run(RunOf::<E, W>(run, PhantomData))))
}

struct Run<'a, 'b> {
    slice: &'a Slice<'a>,
    /// The block's weights, as they are loaded.
    weights: Floats<'b>,
    block: Block<'b>,
    rules: Rules,
}

struct RunOf<'a, 'b, E, W>(Run<'a, 'b>, PhantomData<(E, W)>);

impl<E: Element, W: Width> Kernel for RunOf<'_, '_, E, W> {
    type Output = Result<PairSums, Stop>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let row = self.0.weights.row_length;
        let group_size = self.0.slice.settings.group_size.get();
        let rows = self.0.weights.len() / row;
        let (full, short) = (row / group_size, row % group_size);
        let mut batches = Batches::<S, E, W>::new(s, self.0);
        // Groups of equal length go together: the full ones of all rows, then the short one of each row.
        let groups_per_row = row.div_ceil(group_size);
        let places = |first, in_row, length| Places { row, group_size, groups_per_row, rows, first, in_row, length };
        let both = [places(0, full, group_size), places(full, 1, short)];
        batches.all(&both[usize::from(full == 0)..2 - usize::from(short == 0)])?;
        Ok(batches.losses.finish())
    }
}

/// Where groups of equal length are: the same ones in each of `rows` rows.
#[derive(Clone, Copy)]
struct Places {
    /// Elements of a row.
    row: usize,
    group_size: usize,
    groups_per_row: usize,
    rows: usize,
    /// The first of them in a row, and how many follow one another.
    first: usize,
    in_row: usize,
    /// Elements of each.
    length: usize,
}

impl Places {
    /// The place after group `k` of a row.
    #[inline(always)]
    fn after(&self, row: usize, k: usize) -> Option<(usize, usize)> {
        if k + 1 < self.first + self.in_row {
            Some((row, k + 1))
        } else {
            (row + 1 < self.rows).then_some((row + 1, self.first))
        }
    }
}

/// Sixteen groups of equal length: the first element of each and its number in the block. A batch that is not full
/// repeats its last group.
struct Batch {
    start: [usize; LANES],
    group: [usize; LANES],
    count: usize,
    length: usize,
}

struct Batches<'a, 'b, S: Simd, E, W> {
    s: S,
    run: Run<'a, 'b>,
    losses: Losses,
    /// Transposed weights and importance of a batch.
    weights: Vec<S::F>,
    importance: Vec<S::F>,
    types: PhantomData<(E, W)>,
}

impl<'a, 'b, S: Simd, E: Element, W: Width> Batches<'a, 'b, S, E, W> {
    #[inline(always)]
    fn new(s: S, run: Run<'a, 'b>) -> Self {
        let scratch = |wanted: bool| vec![s.splat(0.0); if wanted { run.slice.settings.group_size.get() } else { 0 }];
        let weights = scratch(run.slice.settings.method.searches());
        let importance = scratch(!weights.is_empty() && run.slice.importance.is_some());
        Self { s, run, losses: Losses::new(), weights, importance, types: PhantomData }
    }

    /// Quantizes the groups at `places`, sixteen of equal length at a time.
    #[inline(always)]
    fn all(&mut self, places: &[Places]) -> Result<(), Stop> {
        for places in places {
            let mut next = Some((0, places.first));
            while next.is_some() {
                let mut batch = Batch { start: [0; LANES], group: [0; LANES], count: 0, length: places.length };
                while let (Some((row, k)), true) = (next, batch.count < LANES) {
                    batch.start[batch.count] = row * places.row + k * places.group_size;
                    batch.group[batch.count] = row * places.groups_per_row + k;
                    batch.count += 1;
                    next = places.after(row, k);
                }
                let last = batch.count - 1;
                let (start, group) = (batch.start[last], batch.group[last]);
                batch.start[batch.count..].fill(start);
                batch.group[batch.count..].fill(group);
                self.quantize(&batch)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn quantize(&mut self, batch: &Batch) -> Result<(), Stop> {
        let s = self.s;
        let search_wanted = !self.weights.is_empty();
        let range = if search_wanted { self.transpose(batch) } else { self.range(batch) };
        if s.bits(s.lt(range.magnitude(s), s.splat(MAGNITUDE_LIMIT))) != u16::MAX {
            return Err(Stop::Invalid);
        }
        let (mut grid, lost) = self.run.rules.minmax(s, range);
        if lost != 0 {
            return Err(Stop::F16);
        }
        if search_wanted {
            let importance = &self.importance[..if self.importance.is_empty() { 0 } else { batch.length }];
            let groups = Groups { weights: &mut self.weights[..batch.length], importance };
            grid = s.call(Search { rules: &self.run.rules, groups, range, minmax: grid });
        }
        let mut grids = Grids::new(s, &grid, range.magnitude(s), self.run.rules.max_code);
        if self.run.slice.settings.method.stretches() {
            let importance = &self.importance[..if self.importance.is_empty() { 0 } else { batch.length }];
            let groups = Groups { weights: &mut self.weights[..batch.length], importance };
            let stretched = s.call(Stretch { rules: &self.run.rules, groups, range, grid });
            // Codes are those of the grid that was found; what they stand for is the stretched one.
            grids.stand_for(s, &stretched);
            grid = stretched;
        }
        self.store(batch, &grid);
        let mut sums = BatchSums::zero(s);
        let weights = self.run.weights;
        let codes = &mut *self.run.block.codes;
        for (lane, &start) in batch.start[..batch.count].iter().enumerate() {
            let group = &weights.bytes[start * E::SIZE..][..batch.length * E::SIZE];
            let out = &mut codes[W::packed_len(start)..][..W::packed_len(batch.length)];
            assign::<S, E, W>(s, group, &grids, lane, out, &mut sums);
        }
        let count = batch.count * batch.length;
        // The sums of squares tell of a NaN, which the range may have missed; what was written is then thrown away.
        let mut finite = true;
        if grids.squares_fit {
            finite = sums.finite(s);
            self.losses.add(s, count, &sums);
        } else {
            self.losses.add_max(s, count, &sums);
            for (lane, &start) in batch.start[..batch.count].iter().enumerate() {
                let group = &weights.bytes[start * E::SIZE..][..batch.length * E::SIZE];
                finite &= self.losses.add_in_f64::<E>(group, &grids, lane);
            }
        }
        if finite { Ok(()) } else { Err(Stop::Invalid) }
    }

    /// The ranges of a batch's groups.
    #[inline(always)]
    fn range(&self, batch: &Batch) -> Range<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        let (mut min, mut max) = ([zero; LANES], [zero; LANES]);
        let bytes = self.run.weights.bytes;
        for lane in 0..LANES {
            let group = &bytes[batch.start[lane] * E::SIZE..][..batch.length * E::SIZE];
            let vectors = group.chunks_exact(LANES * E::SIZE);
            let tail = vectors.remainder();
            let mut low = s.splat(f32::INFINITY);
            let mut high = s.splat(f32::NEG_INFINITY);
            for vector in vectors {
                prefetch(vector, AHEAD);
                let w = E::load(s, vector);
                (low, high) = (s.min(low, w), s.max(high, w));
            }
            if !tail.is_empty() {
                let w = load_padded::<S, E>(s, tail);
                (low, high) = (s.min(low, w), s.max(high, w));
            }
            (min[lane], max[lane]) = (low, high);
        }
        Range::new(s, s.min_of_each(&min), s.max_of_each(&max))
    }

    /// The same, leaving the weights and their importance transposed.
    #[inline(always)]
    fn transpose(&mut self, batch: &Batch) -> Range<S::F> {
        let s = self.s;
        let bytes = self.run.weights.bytes;
        let mut low = s.splat(f32::INFINITY);
        let mut high = s.splat(f32::NEG_INFINITY);
        for first in (0..batch.length).step_by(LANES) {
            let count = LANES.min(batch.length - first);
            let mut rows = [s.splat(0.0); LANES];
            for (row, &start) in rows.iter_mut().zip(&batch.start) {
                let at = &bytes[(start + first) * E::SIZE..];
                prefetch(at, AHEAD);
                *row = if count == LANES { E::load(s, at) } else { load_padded::<S, E>(s, &at[..count * E::SIZE]) };
            }
            let columns = s.transpose(&rows);
            for (to, &w) in self.weights[first..first + count].iter_mut().zip(&columns) {
                *to = w;
                (low, high) = (s.min(low, w), s.max(high, w));
            }
        }
        if let (Some(importance), false) = (self.run.slice.importance, self.importance.is_empty()) {
            let (channel, row_length) = (self.run.block.channel, self.run.weights.row_length);
            let channels = batch.start.map(|start| channel + start % row_length);
            transpose_importance(s, importance, channels, batch.length, &mut self.importance);
        }
        Range::new(s, low, high)
    }

    /// Writes the parameters of a batch's groups.
    #[inline(always)]
    fn store(&mut self, batch: &Batch, grid: &Grid<S::F>) {
        let s = self.s;
        let block = &mut self.run.block;
        let zero_points = s.to_array(grid.zero);
        let parameters = [(&mut *block.scales, grid.scale), (&mut *block.minima, grid.min)];
        for (out, values) in parameters {
            if out.is_empty() {
                continue;
            }
            match self.run.rules.stored {
                ParameterDtype::F16 => scatter::<2>(&s.to_f16(values), batch, out),
                ParameterDtype::F32 => {
                    let values = s.to_array(values).map(f32::to_le_bytes);
                    scatter::<4>(values.as_flattened(), batch, out);
                }
            }
        }
        if !block.zero_points.is_empty() {
            for (lane, &group) in batch.group[..batch.count].iter().enumerate() {
                block.zero_points[group] = zero_points[lane] as u8;
            }
        }
    }
}

/// Writes one parameter of `SIZE` bytes for each group of a batch.
#[inline(always)]
fn scatter<const SIZE: usize>(values: &[u8], batch: &Batch, out: &mut [u8]) {
    let (first, count) = (batch.group[0], batch.count);
    if batch.group[count - 1] - first == count - 1 {
        out[SIZE * first..][..SIZE * count].copy_from_slice(&values[..SIZE * count]);
    } else {
        for (value, &group) in values.chunks_exact(SIZE).zip(&batch.group[..count]) {
            out[SIZE * group..][..SIZE].copy_from_slice(value);
        }
    }
}

/// Fewer than sixteen elements, the last repeated.
#[inline(always)]
fn load_padded<S: Simd, E: Element>(s: S, bytes: &[u8]) -> S::F {
    let last = bytes.len() / E::SIZE - 1;
    s.load_lanes(&std::array::from_fn(|i| E::one(&bytes[i.min(last) * E::SIZE..])))
}

/// The importance of a batch's weights, transposed like them, and scaled to a greatest value of 1 in each group. Where a
/// group's importance is all zero, its weights count alike.
#[inline(always)]
fn transpose_importance<S: Simd>(s: S, importance: &[f32], channel: [usize; LANES], length: usize, out: &mut [S::F]) {
    let mut greatest = s.splat(0.0);
    for (j, to) in out[..length].iter_mut().enumerate() {
        *to = s.load_lanes(&std::array::from_fn(|lane| importance[channel[lane] + j]));
        greatest = s.max(greatest, *to);
    }
    let some = s.lt(s.splat(f32::MIN_POSITIVE), greatest);
    let unit = inverse(s, greatest);
    for to in &mut out[..length] {
        *to = s.select(some, s.mul(*to, unit), s.splat(1.0));
    }
}
