//! What was lost in blocks: they are restored while they are in the cache, and compared with the weights.

use super::MOST;
use super::restore::restore;
use crate::BlockType;
use crate::compare::PairSums;
use crate::simd::{Kernel, LANES, Simd, sum_lanes};

/// Weights between these in magnitude are squared and added in f32; a piece of 256 weights whose greatest is outside is added
/// in f64.
const SQUARES: (f32, f32) = (1.0 / (1u64 << 30) as f32, (1u64 << 40) as f32);

/// The sums over weights and what their blocks stand for, which are infinite or NaN if some restored weight is.
pub(super) struct Measure<'a> {
    pub block_type: BlockType,
    pub x: &'a [f32],
    pub bytes: &'a [u8],
}

impl Kernel for Measure<'_> {
    type Output = PairSums;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> PairSums {
        let Self { block_type, x, bytes } = self;
        let (length, size) = (block_type.length(), block_type.size());
        let zero = s.splat(0.0);
        let mut lanes = [[0.0; LANES]; 4];
        let mut greatest = zero;
        let mut restored = [0.0; MOST];
        for (x, bytes) in x.chunks(MOST).zip(bytes.chunks(MOST / length * size)) {
            for (block, out) in bytes.chunks_exact(size).zip(restored.chunks_exact_mut(length)) {
                restore(s, block_type, block, out);
            }
            let (mut aa, mut bb, mut ab, mut ee, mut most) = (zero, zero, zero, zero, zero);
            for (a, b) in x.chunks_exact(LANES).zip(restored.chunks_exact(LANES)) {
                let (a, b) = (load(s, a), load(s, b));
                let error = s.sub(a, b);
                aa = s.fma(a, a, aa);
                bb = s.fma(b, b, bb);
                ab = s.fma(a, b, ab);
                ee = s.fma(error, error, ee);
                most = s.max_abs(most, a);
                greatest = s.max_abs(greatest, error);
            }
            let small = s.bits(s.lt(most, s.splat(SQUARES.1))) == u16::MAX;
            let large = s.bits(s.lt(s.splat(SQUARES.0), most)) != 0 || s.bits(s.lt(zero, most)) == 0;
            if small && large {
                for (sums, lane) in [aa, bb, ab, ee].into_iter().zip(&mut lanes) {
                    s.add_to_f64(sums, lane);
                }
            } else {
                add_in_f64(x, &restored, &mut lanes);
            }
        }
        let [sum_aa, sum_bb, sum_ab, sum_ee] = lanes.map(sum_lanes);
        let greatest = s.to_array(greatest).into_iter().fold(0.0, f32::max);
        PairSums { n: x.len() as u64, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error: greatest.into() }
    }
}

/// The greatest magnitude of the weights of whole blocks; NaN if one is infinite or NaN.
pub(super) struct Greatest<'a>(pub &'a [f32]);

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let zero = s.splat(0.0);
        // What is not finite times zero is NaN, and stays it.
        let (mut sums, mut most) = ([zero; 2], [zero; 2]);
        for x in self.0.chunks_exact(2 * LANES) {
            for (k, x) in x.chunks_exact(LANES).enumerate() {
                let x = load(s, x);
                sums[k] = s.fma(x, zero, sums[k]);
                most[k] = s.max_abs(most[k], x);
            }
        }
        let sum = s.to_array(s.add(sums[0], sums[1])).into_iter().fold(0.0, |sum, x| sum + x);
        let most = s.to_array(s.max(most[0], most[1])).into_iter().fold(0.0, f32::max);
        most + sum
    }
}

/// The first sixteen.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, x: &[f32]) -> S::F {
    s.load_lanes(x.first_chunk().expect("blocks are whole vectors"))
}

fn add_in_f64(x: &[f32], restored: &[f32; MOST], lanes: &mut [[f64; LANES]; 4]) {
    for (i, (&a, &b)) in x.iter().zip(restored).enumerate() {
        let (a, b) = (f64::from(a), f64::from(b));
        let error = a - b;
        for (lane, product) in lanes.iter_mut().zip([a * a, b * b, a * b, error * error]) {
            lane[i % LANES] += product;
        }
    }
}
