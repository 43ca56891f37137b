//! NEON on AArch64: a vector is four registers.
//!
//! Long because: one operation after another of the same trait.

#![allow(unused_unsafe, reason = "some of the intrinsics are safe, NEON being part of the target's baseline")]

#[allow(clippy::wildcard_imports, reason = "intrinsics have names of their own")]
use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, LANES, Products, Simd, Step, Width, head};
use crate::Bits;

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// An expression of intrinsics on values, or on the fixed-size array a reference points to.
macro_rules! simd {
    ($e:expr) => {
        // SAFETY: `self` is only made by `detect`, so the CPU has NEON; pointers come from references to arrays of the
        // size loaded or stored, by instructions that ask for no alignment.
        unsafe { $e }
    };
}

type F = [float32x4_t; 4];

#[inline(always)]
fn each(f: impl Fn(usize) -> float32x4_t) -> F {
    [f(0), f(1), f(2), f(3)]
}

/// Four binary16 widened to binary32.
#[inline(always)]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: FCVTL reads and writes only the two registers named; it is in every AArch64 CPU's baseline. The intrinsic
    // for it needs the f16 type, which is not stable.
    unsafe {
        asm!("fcvtl {o:v}.4s, {i:v}.4h", o = lateout(vreg) out, i = in(vreg) halves, options(pure, nomem, nostack));
    }
    out
}

/// Four binary32 rounded to binary16, ties to even.
#[inline(always)]
fn narrow_f16(x: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: as in `widen_f16`; FCVTN rounds by FPCR, which is to nearest in all Rust code.
    unsafe {
        asm!("fcvtn {o:v}.4h, {i:v}.4s", o = lateout(vreg) out, i = in(vreg) x, options(pure, nomem, nostack));
    }
    out
}

impl Neon {
    /// A 4x4 transposition.
    #[inline(always)]
    fn transpose4(self, a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        simd!({
            let pair = |a, b| {
                let t = vtrnq_f32(a, b);
                (vreinterpretq_f64_f32(t.0), vreinterpretq_f64_f32(t.1))
            };
            let ((ab0, ab1), (cd0, cd1)) = (pair(a[0], a[1]), pair(a[2], a[3]));
            [
                vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0)),
                vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1)),
                vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0)),
                vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1)),
            ]
        })
    }
}

/// For `vqtbl1q_u8` of sixteen packed codes: the two bytes that each lane's code may lie in, four lanes a register, and the
/// shift, to the left and so negative, that brings the code's first bit to the lowest.
const fn pick_four(bits: Bits) -> ([[u8; 16]; 4], [[i32; 4]; 4]) {
    let (mut pick, mut shift, mut lane) = ([[0xff; 16]; 4], [[0; 4]; 4], 0);
    while lane < 16 {
        let bit = lane * bits.get();
        pick[lane / 4][4 * (lane % 4)] = (bit / 8) as u8;
        pick[lane / 4][4 * (lane % 4) + 1] = (bit / 8 + 1) as u8;
        shift[lane / 4][lane % 4] = -((bit % 8) as i32);
        lane += 1;
    }
    (pick, shift)
}

impl Simd for Neon {
    type F = F;
    type M = [uint32x4_t; 4];
    type B = uint8x16_t;
    type D = [float64x2_t; 8];

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn enter<K: Kernel>(s: Neon, kernel: K) -> K::Output {
            kernel.run(s)
        }
        simd!(enter(self, kernel))
    }
    #[inline(always)]
    fn call<T: Step<Self>>(self, step: T) -> T::Output {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        fn enter<T: Step<Neon>>(s: Neon, step: T) -> T::Output {
            step.take(s)
        }
        simd!(enter(self, step))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [simd!(vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn load_lanes(self, x: &[f32; LANES]) -> F {
        each(|i| simd!(vld1q_f32(x[4 * i..4 * i + 4].as_ptr())))
    }
    #[inline(always)]
    fn to_array(self, a: F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, a) in out.chunks_exact_mut(4).zip(a) {
            simd!(vst1q_f32(out.as_mut_ptr(), a));
        }
        out
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> F {
        each(|i| {
            simd!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(
                bytes[8 * i..8 * i + 8].as_ptr()
            )))))
        })
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> F {
        each(|i| widen_f16(simd!(vreinterpret_u16_u8(vld1_u8(bytes[8 * i..8 * i + 8].as_ptr())))))
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> F {
        each(|i| simd!(vreinterpretq_f32_u8(vld1q_u8(bytes[16 * i..16 * i + 16].as_ptr()))))
    }
    #[inline(always)]
    fn load_f64(self, bytes: &[u8; 128]) -> F {
        let two = |i: usize| simd!(vreinterpretq_f64_u8(vld1q_u8(bytes[16 * i..16 * i + 16].as_ptr())));
        each(|i| simd!(vcvt_high_f32_f64(vcvt_f32_f64(two(2 * i)), two(2 * i + 1))))
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| simd!(vaddq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| simd!(vsubq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| simd!(vmulq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| simd!(vdivq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each(|i| simd!(vfmaq_f32(c[i], a[i], b[i])))
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        each(|i| simd!(vabsq_f32(a[i])))
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        each(|i| simd!(vsqrtq_f32(a[i])))
    }
    #[inline(always)]
    fn max_abs(self, a: F, b: F) -> F {
        self.max(a, self.abs(b))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(|i| simd!(vminq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| simd!(vmaxq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn min_of_each(self, a: &[F; LANES]) -> F {
        simd!({
            let four = |a: F| vminq_f32(vminq_f32(a[0], a[1]), vminq_f32(a[2], a[3]));
            each(|i| {
                let v = |k: usize| four(a[4 * i + k]);
                vpminq_f32(vpminq_f32(v(0), v(1)), vpminq_f32(v(2), v(3)))
            })
        })
    }
    #[inline(always)]
    fn max_of_each(self, a: &[F; LANES]) -> F {
        simd!({
            let four = |a: F| vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]));
            each(|i| {
                let v = |k: usize| four(a[4 * i + k]);
                vpmaxq_f32(vpmaxq_f32(v(0), v(1)), vpmaxq_f32(v(2), v(3)))
            })
        })
    }

    #[inline(always)]
    fn lt(self, a: F, b: F) -> [uint32x4_t; 4] {
        [0, 1, 2, 3].map(|i| simd!(vcltq_f32(a[i], b[i])))
    }
    #[inline(always)]
    fn select(self, m: [uint32x4_t; 4], a: F, b: F) -> F {
        each(|i| simd!(vbslq_f32(m[i], a[i], b[i])))
    }
    #[inline(always)]
    fn bits(self, m: [uint32x4_t; 4]) -> u16 {
        simd!({
            let weights = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            (0..4).fold(0, |bits, i| bits | (vaddvq_u32(vandq_u32(m[i], weights)) as u16) << (4 * i))
        })
    }

    #[inline(always)]
    fn round_f16(self, a: F) -> F {
        each(|i| widen_f16(narrow_f16(a[i])))
    }
    #[inline(always)]
    fn to_f16(self, a: F) -> [u8; 32] {
        let mut out = [0; 32];
        for (out, a) in out.chunks_exact_mut(8).zip(a) {
            simd!(vst1_u8(out.as_mut_ptr(), vreinterpret_u8_u16(narrow_f16(a))));
        }
        out
    }
    #[inline(always)]
    fn transpose(self, a: &[F; LANES]) -> [F; LANES] {
        // Block (r, c) holds rows 4r.. and columns 4c..; transposed, it is part r of vectors 4c...
        let blocks: [[[float32x4_t; 4]; 4]; 4] =
            std::array::from_fn(|r| std::array::from_fn(|c| self.transpose4(std::array::from_fn(|i| a[4 * r + i][c]))));
        std::array::from_fn(|i| each(|r| blocks[r][i / 4][i % 4]))
    }

    #[inline(always)]
    fn pack<W: Width>(self, codes: [F; 2], out: &mut [u8]) {
        simd!({
            let sixteen = |v: F| {
                let half =
                    |a, b| vcombine_u16(vmovn_u32(vreinterpretq_u32_f32(a)), vmovn_u32(vreinterpretq_u32_f32(b)));
                vcombine_u8(vmovn_u16(half(v[0], v[1])), vmovn_u16(half(v[2], v[3])))
            };
            let (low, high) = (sixteen(codes[0]), sixteen(codes[1]));
            match W::BITS {
                Bits::Eight => {
                    vst1q_u8(out[..16].as_mut_ptr(), low);
                    vst1q_u8(out[16..32].as_mut_ptr(), high);
                }
                Bits::Four => {
                    let packed = vsliq_n_u8::<4>(vuzp1q_u8(low, high), vuzp2q_u8(low, high));
                    vst1q_u8(out[..16].as_mut_ptr(), packed);
                }
                Bits::Three | Bits::Five | Bits::Six => {
                    let mut bytes = [0u8; 2 * LANES];
                    vst1q_u8(bytes[..16].as_mut_ptr(), low);
                    vst1q_u8(bytes[16..].as_mut_ptr(), high);
                    let bits = W::BITS.get();
                    for (out, codes) in
                        out[..W::packed_len(2 * LANES)].chunks_exact_mut(bits).zip(bytes.chunks_exact(8))
                    {
                        // Codes become neighbours in pairs, fours and eights: each step closes half of the gaps.
                        let eight = u64::from_le_bytes(*head(codes));
                        let pairs = eight & 0x00ff_00ff_00ff_00ff | (eight & 0xff00_ff00_ff00_ff00) >> (8 - bits);
                        let fours = pairs & 0x0000_ffff_0000_ffff | (pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * bits);
                        let all = fours & 0xffff_ffff | (fours >> 32) << (4 * bits);
                        out.copy_from_slice(&all.to_le_bytes()[..bits]);
                    }
                }
                Bits::Two => {
                    let pairs = vsliq_n_u8::<2>(vuzp1q_u8(low, high), vuzp2q_u8(low, high));
                    let packed = vsliq_n_u8::<4>(vuzp1q_u8(pairs, pairs), vuzp2q_u8(pairs, pairs));
                    vst1_u8(out[..8].as_mut_ptr(), vget_low_u8(packed));
                }
            }
        })
    }
    #[inline(always)]
    fn unpack<W: Width>(self, bytes: &[u8]) -> [F; 2] {
        simd!({
            let sixteen = |bytes: uint8x16_t| {
                let eight = |half: uint8x8_t| {
                    let wide = vmovl_u8(half);
                    [vmovl_u16(vget_low_u16(wide)), vmovl_u16(vget_high_u16(wide))]
                };
                let (low, high) = (eight(vget_low_u8(bytes)), eight(vget_high_u8(bytes)));
                [vcvtq_f32_u32(low[0]), vcvtq_f32_u32(low[1]), vcvtq_f32_u32(high[0]), vcvtq_f32_u32(high[1])]
            };
            let mask = vdupq_n_u8(W::BITS.max_code());
            match W::BITS {
                Bits::Eight => {
                    let bytes: &[u8; 32] = head(bytes);
                    [sixteen(vld1q_u8(bytes.as_ptr())), sixteen(vld1q_u8(bytes[16..].as_ptr()))]
                }
                Bits::Four => {
                    let packed = vld1q_u8(head::<16>(bytes).as_ptr());
                    let (even, odd) = (vandq_u8(packed, mask), vshrq_n_u8::<4>(packed));
                    [sixteen(vzip1q_u8(even, odd)), sixteen(vzip2q_u8(even, odd))]
                }
                Bits::Three | Bits::Five | Bits::Six => {
                    let (pick, shift) = const { pick_four(W::BITS) };
                    let sixteen = |i: usize| {
                        // Sixteen codes are at most 12 bytes. Each lane takes the two bytes that its code may lie in.
                        let mut packed = [0; 16];
                        let size = W::packed_len(LANES);
                        packed[..size].copy_from_slice(&bytes[size * i..][..size]);
                        let packed = vld1q_u8(packed.as_ptr());
                        let mask = vdupq_n_u32(W::BITS.max_code().into());
                        let mut out = [vdupq_n_f32(0.0); 4];
                        for (q, out) in out.iter_mut().enumerate() {
                            let words = vqtbl1q_u8(packed, vld1q_u8(pick[q].as_ptr()));
                            let codes = vshlq_u32(vreinterpretq_u32_u8(words), vld1q_s32(shift[q].as_ptr()));
                            *out = vcvtq_f32_u32(vandq_u32(codes, mask));
                        }
                        out
                    };
                    [sixteen(0), sixteen(1)]
                }
                Bits::Two => {
                    let half = vld1_u8(head::<8>(bytes).as_ptr());
                    let packed = vcombine_u8(half, half);
                    let plane = [packed, vshrq_n_u8::<2>(packed), vshrq_n_u8::<4>(packed), vshrq_n_u8::<6>(packed)]
                        .map(|p| vandq_u8(p, mask));
                    // Eight bytes of each plane: interleave 0 with 1 and 2 with 3, then the pairs.
                    let (low, high) = (vzip1q_u8(plane[0], plane[1]), vzip1q_u8(plane[2], plane[3]));
                    let (low, high) = (vreinterpretq_u16_u8(low), vreinterpretq_u16_u8(high));
                    [
                        sixteen(vreinterpretq_u8_u16(vzip1q_u16(low, high))),
                        sixteen(vreinterpretq_u8_u16(vzip2q_u16(low, high))),
                    ]
                }
            }
        })
    }

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; LANES]) -> uint8x16_t {
        simd!(vld1q_u8(bytes.as_ptr()))
    }
    #[inline(always)]
    fn store_bytes(self, a: uint8x16_t, out: &mut [u8; LANES]) {
        simd!(vst1q_u8(out.as_mut_ptr(), a));
    }
    #[inline(always)]
    fn splat_byte(self, x: u8) -> uint8x16_t {
        simd!(vdupq_n_u8(x))
    }
    #[inline(always)]
    fn and(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        simd!(vandq_u8(a, b))
    }
    #[inline(always)]
    fn or(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        simd!(vorrq_u8(a, b))
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: uint8x16_t) -> uint8x16_t {
        simd!(vshlq_u8(a, vdupq_n_s8(N as i8)))
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: uint8x16_t) -> uint8x16_t {
        // A shift by a negative number is one to the right.
        simd!(vshlq_u8(a, vdupq_n_s8(-(N as i8))))
    }
    #[inline(always)]
    fn choose(self, table: &[i8; 16], codes: uint8x16_t) -> uint8x16_t {
        simd!(vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(table.as_ptr()), vandq_u8(codes, vdupq_n_u8(15)))))
    }
    #[inline(always)]
    fn widen_bytes(self, a: uint8x16_t) -> F {
        simd!({
            let halves = [vmovl_u8(vget_low_u8(a)), vmovl_u8(vget_high_u8(a))];
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves[0]))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(halves[0]))),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves[1]))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(halves[1]))),
            ]
        })
    }
    #[inline(always)]
    fn widen_signed(self, a: uint8x16_t) -> F {
        simd!({
            let a = vreinterpretq_s8_u8(a);
            let halves = [vmovl_s8(vget_low_s8(a)), vmovl_s8(vget_high_s8(a))];
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves[0]))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(halves[0]))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves[1]))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(halves[1]))),
            ]
        })
    }

    #[inline(always)]
    fn add_to_f64(self, a: F, sums: &mut [f64; LANES]) {
        for (sums, a) in sums.chunks_exact_mut(4).zip(a) {
            simd!({
                let p = sums.as_mut_ptr();
                vst1q_f64(p, vaddq_f64(vld1q_f64(p), vcvt_f64_f32(vget_low_f32(a))));
                vst1q_f64(p.add(2), vaddq_f64(vld1q_f64(p.add(2)), vcvt_high_f64_f32(a)));
            });
        }
    }
    #[inline(always)]
    fn products_f64(self, a: F, b: F, sums: &mut Products<Self>) {
        for i in 0..4 {
            simd!({
                let x = [vcvt_f64_f32(vget_low_f32(a[i])), vcvt_high_f64_f32(a[i])];
                let y = [vcvt_f64_f32(vget_low_f32(b[i])), vcvt_high_f64_f32(b[i])];
                for k in 0..2 {
                    let d = 2 * i + k;
                    sums[0][d] = vfmaq_f64(sums[0][d], x[k], y[k]);
                    sums[1][d] = vfmaq_f64(sums[1][d], x[k], x[k]);
                    sums[2][d] = vfmaq_f64(sums[2][d], y[k], y[k]);
                }
            });
        }
    }
    #[inline(always)]
    fn products_zero(self) -> Products<Self> {
        [[simd!(vdupq_n_f64(0.0)); 8]; 3]
    }
    #[inline(always)]
    fn products_to_arrays(self, sums: &Products<Self>) -> [[f64; LANES]; 3] {
        let mut out = [[0.0; LANES]; 3];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, &sum) in out.chunks_exact_mut(2).zip(sums) {
                simd!(vst1q_f64(out.as_mut_ptr(), sum));
            }
        }
        out
    }
}
