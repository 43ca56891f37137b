//! Quantization of a slice: groups in batches of sixteen, each batch ranged, fitted, coded and measured while it is in L1.

use rayon::prelude::*;

use crate::assign::{BatchSums, Grids, Losses, assign};
use crate::compare::PairSums;
use crate::grid::{Grid, Range, Rules};
use crate::search::{Groups, search};
use crate::simd::{Element, Kernel, LANES, Simd, for_dtype, prefetch};
use crate::types::{Bits, Method, ParameterDtype, Scheme, Settings, Weights, group_count};
use crate::{Isa, KernelError, Result};

/// Elements after which error sums are folded: whole rows, at least this many, and longer rows in pieces of it. Part of
/// the specification, since it decides the order of additions; results are the same however many threads share the
/// blocks. A multiple of every group size.
const BLOCK: usize = 1 << 16;

/// Weights must be smaller in magnitude than 2¹²⁵, so that neither a group's range nor any level of its grid, rounded up,
/// leaves the range of f32.
const MAGNITUDE_LIMIT: f32 = f32::from_bits((125 + 127) << 23);

/// How far ahead weights are fetched. A batch is read twice, with work between, which leaves the hardware's prefetchers
/// idle at each batch's start: without this, minmax spends two fifths of its time waiting there.
const AHEAD: usize = 8192;

/// A quantized slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The settings it was made with.
    pub settings: Settings,
    /// Weights in all.
    pub length: usize,
    /// Weights of a row.
    pub row_length: usize,
    /// How scales and minima are stored.
    pub parameter_dtype: ParameterDtype,
    /// One code a weight, packed without gaps, first code in the lowest bits.
    pub codes: Vec<u8>,
    /// One scale a group, little-endian.
    pub scales: Vec<u8>,
    /// One minimum a group, little-endian; empty unless the scheme is affine.
    pub minima: Vec<u8>,
    /// One zero point a group, a byte each; empty unless the scheme is asymmetric.
    pub zero_points: Vec<u8>,
    /// What was lost: `a` the weights, `b` the restored ones.
    pub errors: PairSums,
}

/// A quantized slice whose buffers live elsewhere.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // the fields of `Quantized`
pub struct QuantizedRef<'a> {
    pub bits: Bits,
    pub group_size: crate::GroupSize,
    pub scheme: Scheme,
    pub length: usize,
    pub row_length: usize,
    pub parameter_dtype: ParameterDtype,
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub minima: &'a [u8],
    pub zero_points: &'a [u8],
}

impl Quantized {
    /// The same, borrowed.
    pub fn as_ref(&self) -> QuantizedRef<'_> {
        QuantizedRef {
            bits: self.settings.bits,
            group_size: self.settings.group_size,
            scheme: self.settings.scheme,
            length: self.length,
            row_length: self.row_length,
            parameter_dtype: self.parameter_dtype,
            codes: &self.codes,
            scales: &self.scales,
            minima: &self.minima,
            zero_points: &self.zero_points,
        }
    }
}

/// Quantizes a slice on this thread.
///
/// `importance` has one finite, non-negative number for each element of a row (each input channel); the `mse` search then
/// minimises the squared errors so weighted. Scales and minima are f16, unless rounding to it would move a level of some
/// group's grid by more than a quarter of a step: then all of the slice's parameters are f32. That is decided by the
/// groups' ranges alone, whatever the method.
///
/// # Errors
/// [`KernelError::NotFinite`], [`KernelError::Range`], and importance of the wrong length or sign.
pub fn quantize(isa: Isa, weights: Weights<'_>, settings: Settings, importance: Option<&[f32]>) -> Result<Quantized> {
    with_stored_dtype(weights, settings, importance, |slice, blocks, stored| {
        blocks.into_iter().map(|block| slice.quantize_block(isa, block, stored)).collect()
    })
}

/// [`quantize`] on all threads of the current rayon pool; the same bytes.
///
/// # Errors
/// As [`quantize`].
pub fn par_quantize(
    isa: Isa,
    weights: Weights<'_>,
    settings: Settings,
    importance: Option<&[f32]>,
) -> Result<Quantized> {
    with_stored_dtype(weights, settings, importance, |slice, blocks, stored| {
        blocks.into_par_iter().map(|block| slice.quantize_block(isa, block, stored)).collect()
    })
}

/// Runs the blocks with f16 parameters, and again with f32 if f16 does not hold them.
fn with_stored_dtype(
    weights: Weights<'_>,
    settings: Settings,
    importance: Option<&[f32]>,
    run: impl Fn(&Slice<'_>, Vec<Block<'_>>, ParameterDtype) -> std::result::Result<Vec<PairSums>, Stop>,
) -> Result<Quantized> {
    check_importance(&weights, importance)?;
    let slice = Slice { weights, settings, importance };
    for stored in [ParameterDtype::F16, ParameterDtype::F32] {
        let mut out = slice.empty(stored);
        match run(&slice, slice.blocks(&mut out), stored) {
            Ok(errors) => {
                out.errors = errors.iter().fold(PairSums::default(), |sum, part| sum + *part);
                if slice.unaligned() {
                    out.codes = pack_bytes(&out.codes, settings.bits);
                }
                return Ok(out);
            }
            Err(Stop::F16) => {}
            Err(Stop::Invalid) => return Err(slice.first_invalid()),
        }
    }
    unreachable!("f32 parameters hold every finite range")
}

fn check_importance(weights: &Weights<'_>, importance: Option<&[f32]>) -> Result<()> {
    let Some(importance) = importance else { return Ok(()) };
    if importance.len() != weights.row_length() && !weights.is_empty() {
        return Err(KernelError::Mismatch {
            what: "importance, one for each weight of a row",
            found: importance.len(),
            expected: weights.row_length(),
        });
    }
    match importance.iter().position(|&i| !(i.is_finite() && i >= 0.0)) {
        Some(index) => Err(KernelError::Importance { index, value: importance[index] }),
        None => Ok(()),
    }
}

/// Why a block was given up.
enum Stop {
    /// Some group's parameters need f32.
    F16,
    /// Some weight is not finite, or some group's range is not.
    Invalid,
}

/// What is to be quantized.
struct Slice<'a> {
    weights: Weights<'a>,
    settings: Settings,
    importance: Option<&'a [f32]>,
}

/// Some rows of the slice, or a piece of one, and the buffers their results go to.
struct Block<'a> {
    weights: Weights<'a>,
    /// Where in its row the first weight is.
    channel: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    minima: &'a mut [u8],
    zero_points: &'a mut [u8],
}

impl<'a> Slice<'a> {
    /// True if rows do not end on a byte of packed codes; these are then packed in a second step.
    fn unaligned(&self) -> bool {
        !(self.weights.row_length() * self.settings.bits.get()).is_multiple_of(8)
    }

    fn empty(&self, stored: ParameterDtype) -> Quantized {
        let (length, row_length) = (self.weights.len(), self.weights.row_length());
        let groups = group_count(length, row_length, self.settings.group_size);
        let sized = |wanted: bool, size: usize| vec![0; if wanted { groups * size } else { 0 }];
        let codes = if self.unaligned() { length } else { self.settings.bits.packed_len(length) };
        Quantized {
            settings: self.settings,
            length,
            row_length,
            parameter_dtype: stored,
            codes: vec![0; codes],
            scales: sized(true, stored.size()),
            minima: sized(self.settings.scheme == Scheme::Affine, stored.size()),
            zero_points: sized(self.settings.scheme == Scheme::Asymmetric, 1),
            errors: PairSums::default(),
        }
    }

    /// The slice in blocks.
    fn blocks<'b>(&self, out: &'b mut Quantized) -> Vec<Block<'b>>
    where
        'a: 'b,
    {
        let row_length = out.row_length;
        let span = if row_length > BLOCK { row_length } else { BLOCK.div_ceil(row_length.max(1)) * row_length };
        let piece = span.min(if row_length > BLOCK { BLOCK } else { span });
        let code_bits = if self.unaligned() { 8 } else { self.settings.bits.get() };
        let size = out.parameter_dtype.size();
        let (mut codes, mut scales) = (out.codes.as_mut_slice(), out.scales.as_mut_slice());
        let (mut minima, mut zero_points) = (out.minima.as_mut_slice(), out.zero_points.as_mut_slice());
        let mut blocks = Vec::new();
        for first in (0..out.length).step_by(span.max(1)) {
            let end = out.length.min(first + span);
            for start in (first..end).step_by(piece) {
                let length = piece.min(end - start);
                let groups = group_count(length, row_length.min(length), self.settings.group_size);
                blocks.push(Block {
                    weights: self.weights.rows(start, length),
                    channel: if row_length > BLOCK { start - first } else { 0 },
                    codes: take(&mut codes, length * code_bits / 8),
                    scales: take(&mut scales, groups * size),
                    minima: take(&mut minima, groups * size),
                    zero_points: take(&mut zero_points, groups),
                });
            }
        }
        blocks
    }

    fn quantize_block(
        &self,
        isa: Isa,
        block: Block<'_>,
        stored: ParameterDtype,
    ) -> std::result::Result<PairSums, Stop> {
        let unaligned = self.unaligned();
        let run = Run { slice: self, block, rules: Rules::new(&self.settings, stored) };
        for_dtype!(self.weights.dtype(), E => match (self.settings.bits, unaligned) {
            (Bits::Two, false) => isa.run(RunBits::<E, 2>(run, std::marker::PhantomData)),
            (Bits::Four, false) => isa.run(RunBits::<E, 4>(run, std::marker::PhantomData)),
            _ => isa.run(RunBits::<E, 8>(run, std::marker::PhantomData)),
        })
    }

    /// The error for the first weight, or else group, that cannot be quantized.
    fn first_invalid(&self) -> KernelError {
        let row = self.weights.row_length();
        let group_size = self.settings.group_size.get();
        for_dtype!(self.weights.dtype(), E => {
            let stored = |i: usize| &self.weights.bytes()[i * E::SIZE..];
            let element = |i: usize| E::one(stored(i));
            let length = self.weights.len();
            if let Some(index) = (0..length).find(|&i| !element(i).is_finite()) {
                return KernelError::NotFinite { index, value: E::wide(stored(index)) };
            }
            for start in (0..length).step_by(row) {
                for index in (start..start + row).step_by(group_size) {
                    let end = (index + group_size).min(start + row);
                    let min = (index..end).map(element).fold(f32::INFINITY, f32::min);
                    let max = (index..end).map(element).fold(f32::NEG_INFINITY, f32::max);
                    if max.abs().max(min.abs()) >= MAGNITUDE_LIMIT {
                        return KernelError::Range { index, min, max };
                    }
                }
            }
        });
        unreachable!("a block was given up for a weight or range that is not finite")
    }
}

/// Cuts off the first `length` bytes, or what there is: buffers a scheme does not need are empty.
fn take<'a>(rest: &mut &'a mut [u8], length: usize) -> &'a mut [u8] {
    let length = length.min(rest.len());
    rest.split_off_mut(..length).unwrap_or_default()
}

/// Codes of a byte each, packed.
fn pack_bytes(codes: &[u8], bits: Bits) -> Vec<u8> {
    let per_byte = 8 / bits.get();
    codes
        .chunks(per_byte)
        .map(|codes| codes.iter().enumerate().fold(0, |byte, (k, code)| byte | code << (k * bits.get())))
        .collect()
}

struct Run<'a, 'b> {
    slice: &'a Slice<'a>,
    block: Block<'b>,
    rules: Rules,
}

struct RunBits<'a, 'b, E, const BITS: usize>(Run<'a, 'b>, std::marker::PhantomData<E>);

impl<E: Element, const BITS: usize> Kernel for RunBits<'_, '_, E, BITS> {
    type Output = std::result::Result<PairSums, Stop>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let row = self.0.block.weights.row_length();
        let group_size = self.0.slice.settings.group_size.get();
        let rows = self.0.block.weights.len() / row;
        let (full, short) = (row / group_size, row % group_size);
        let mut batches = Batches::<S, E, BITS>::new(s, self.0);
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

struct Batches<'a, 'b, S: Simd, E, const BITS: usize> {
    s: S,
    run: Run<'a, 'b>,
    losses: Losses,
    /// Transposed weights and importance of a batch.
    weights: Vec<S::F>,
    importance: Vec<S::F>,
    element: std::marker::PhantomData<E>,
}

impl<'a, 'b, S: Simd, E: Element, const BITS: usize> Batches<'a, 'b, S, E, BITS> {
    #[inline(always)]
    fn new(s: S, run: Run<'a, 'b>) -> Self {
        let scratch = |wanted: bool| vec![s.splat(0.0); if wanted { run.slice.settings.group_size.get() } else { 0 }];
        let weights = scratch(run.slice.settings.method == Method::Mse);
        let importance = scratch(!weights.is_empty() && run.slice.importance.is_some());
        Self { s, run, losses: Losses::new(), weights, importance, element: std::marker::PhantomData }
    }

    /// Quantizes the groups at `places`, sixteen of equal length at a time.
    #[inline(always)]
    fn all(&mut self, places: &[Places]) -> std::result::Result<(), Stop> {
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
    fn quantize(&mut self, batch: &Batch) -> std::result::Result<(), Stop> {
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
            grid = search(s, &self.run.rules, groups, range, grid);
        }
        self.store(batch, &grid);
        let grids = Grids::new(s, &grid, range.magnitude(s), self.run.rules.max_code);
        let mut sums = BatchSums::zero(s);
        let block = &mut self.run.block;
        for (lane, &start) in batch.start[..batch.count].iter().enumerate() {
            let group = &block.weights.bytes()[start * E::SIZE..][..batch.length * E::SIZE];
            let out = &mut block.codes[start * BITS / 8..][..(batch.length * BITS).div_ceil(8)];
            assign::<S, E, BITS>(s, group, &grids, lane, out, &mut sums);
        }
        let weights = batch.count * batch.length;
        // The sums of squares tell of a NaN, which the range may have missed; what was written is then thrown away.
        let mut finite = true;
        if grids.squares_fit {
            finite = sums.finite(s);
            self.losses.add(s, weights, &sums);
        } else {
            self.losses.add_max(s, weights, &sums);
            for (lane, &start) in batch.start[..batch.count].iter().enumerate() {
                let group = &block.weights.bytes()[start * E::SIZE..][..batch.length * E::SIZE];
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
        let bytes = self.run.block.weights.bytes();
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
        let bytes = self.run.block.weights.bytes();
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
            let block = &self.run.block;
            let channels = batch.start.map(|start| block.channel + start % block.weights.row_length());
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
    let unit = crate::grid::inverse(s, greatest);
    for to in &mut out[..length] {
        *to = s.select(some, s.mul(*to, unit), s.splat(1.0));
    }
}
