//! AVX2 with FMA and F16C: a vector is two registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics have names of their own")]
use std::arch::x86_64::*;

use super::{Kernel, LANES, Products, Simd, Step, Width, head};
use crate::Bits;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// An expression of intrinsics on values, or on the fixed-size array a reference points to.
macro_rules! simd {
    ($e:expr) => {
        // SAFETY: `self` is only made by `detect`, so the CPU has the features; pointers come from references to arrays
        // of the size loaded or stored, by instructions that ask for no alignment.
        unsafe { $e }
    };
}

/// Reduces four vectors of two registers each to one register: lane k of either half holds that half's part of vector k.
macro_rules! quad {
    ($a:expr, $i:expr, $op:ident) => {{
        let (a, b) = ($op($a[$i][0], $a[$i][1]), $op($a[$i + 1][0], $a[$i + 1][1]));
        let (c, d) = ($op($a[$i + 2][0], $a[$i + 2][1]), $op($a[$i + 3][0], $a[$i + 3][1]));
        let ab = $op(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = $op(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        $op(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd))
    }};
}

/// Reduces sixteen vectors by pairs, so that lane k of the result is the reduction of `a[k]`.
macro_rules! of_each {
    ($a:expr, $op:ident) => {{
        let (p, q, r, t) = (quad!($a, 0, $op), quad!($a, 4, $op), quad!($a, 8, $op), quad!($a, 12, $op));
        [
            $op(_mm256_permute2f128_ps::<0x20>(p, q), _mm256_permute2f128_ps::<0x31>(p, q)),
            $op(_mm256_permute2f128_ps::<0x20>(r, t), _mm256_permute2f128_ps::<0x31>(r, t)),
        ]
    }};
}

type F = [__m256; 2];

/// One intrinsic on both registers. Not a closure: closures that are not inlined would lose the instruction set.
macro_rules! both {
    ($op:ident, $($a:expr),+) => {
        [simd!($op($($a[0]),+)), simd!($op($($a[1]),+))]
    };
}

/// Four quarters of a vector, widened to f64.
macro_rules! quarters {
    ($a:expr) => {
        [
            _mm256_cvtps_pd(_mm256_castps256_ps128($a[0])),
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>($a[0])),
            _mm256_cvtps_pd(_mm256_castps256_ps128($a[1])),
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>($a[1])),
        ]
    };
}

/// For `_mm256_shuffle_epi8` of eight packed codes: the two bytes that each lane's code may lie in, and the code's first bit
/// in them.
const fn pick_eight(bits: Bits) -> ([u8; 32], [i32; 8]) {
    let (mut pick, mut shift, mut lane) = ([0x80; 32], [0; 8], 0);
    while lane < 8 {
        let bit = lane * bits.get();
        pick[4 * lane] = (bit / 8) as u8;
        // The byte after the last is not needed; a code that ends there lies in one byte.
        pick[4 * lane + 1] = (bit / 8 + 1) as u8;
        shift[lane] = (bit % 8) as i32;
        lane += 1;
    }
    (pick, shift)
}

impl Avx2 {
    /// An 8x8 transposition.
    #[inline(always)]
    fn transpose8(self, a: [__m256; 8]) -> [__m256; 8] {
        simd!({
            let mut b = [_mm256_setzero_ps(); 8];
            for i in [0, 4] {
                let ab_lo = _mm256_unpacklo_ps(a[i], a[i + 1]);
                let ab_hi = _mm256_unpackhi_ps(a[i], a[i + 1]);
                let cd_lo = _mm256_unpacklo_ps(a[i + 2], a[i + 3]);
                let cd_hi = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
                b[i] = _mm256_shuffle_ps::<0x44>(ab_lo, cd_lo);
                b[i + 1] = _mm256_shuffle_ps::<0xee>(ab_lo, cd_lo);
                b[i + 2] = _mm256_shuffle_ps::<0x44>(ab_hi, cd_hi);
                b[i + 3] = _mm256_shuffle_ps::<0xee>(ab_hi, cd_hi);
            }
            let mut c = b;
            for i in 0..4 {
                c[i] = _mm256_permute2f128_ps::<0x20>(b[i], b[4 + i]);
                c[4 + i] = _mm256_permute2f128_ps::<0x31>(b[i], b[4 + i]);
            }
            c
        })
    }
}

impl Simd for Avx2 {
    type F = F;
    type M = F;
    type B = __m128i;
    type D = [__m256d; 4];

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            kernel.run(s)
        }
        simd!(enter(self, kernel))
    }
    #[inline(always)]
    fn call<T: Step<Self>>(self, step: T) -> T::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<T: Step<Avx2>>(s: Avx2, step: T) -> T::Output {
            step.take(s)
        }
        simd!(enter(self, step))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [simd!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load_lanes(self, x: &[f32; LANES]) -> F {
        simd!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn to_array(self, a: F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd!({
            _mm256_storeu_ps(out.as_mut_ptr(), a[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), a[1]);
        });
        out
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> F {
        simd!({
            let p: *const __m128i = bytes.as_ptr().cast();
            let (low, high) =
                (_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1))));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        })
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> F {
        simd!({
            let p: *const __m128i = bytes.as_ptr().cast();
            [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))]
        })
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> F {
        simd!({
            let p: *const f32 = bytes.as_ptr().cast();
            [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
        })
    }
    #[inline(always)]
    fn load_f64(self, bytes: &[u8; 128]) -> F {
        simd!({
            let p: *const f64 = bytes.as_ptr().cast();
            [
                _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p.add(4))), _mm256_cvtpd_ps(_mm256_loadu_pd(p))),
                _mm256_set_m128(
                    _mm256_cvtpd_ps(_mm256_loadu_pd(p.add(12))),
                    _mm256_cvtpd_ps(_mm256_loadu_pd(p.add(8))),
                ),
            ]
        })
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        both!(_mm256_sqrt_ps, a)
    }
    #[inline(always)]
    fn max_abs(self, a: F, b: F) -> F {
        self.max(a, self.abs(b))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min_of_each(self, a: &[F; LANES]) -> F {
        simd!(of_each!(a, _mm256_min_ps))
    }
    #[inline(always)]
    fn max_of_each(self, a: &[F; LANES]) -> F {
        simd!(of_each!(a, _mm256_max_ps))
    }

    #[inline(always)]
    fn lt(self, a: F, b: F) -> F {
        simd!([_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])])
    }
    #[inline(always)]
    fn select(self, m: F, a: F, b: F) -> F {
        simd!([_mm256_blendv_ps(b[0], a[0], m[0]), _mm256_blendv_ps(b[1], a[1], m[1])])
    }
    #[inline(always)]
    fn bits(self, m: F) -> u16 {
        simd!(_mm256_movemask_ps(m[0]) as u16 | (_mm256_movemask_ps(m[1]) as u16) << 8)
    }

    #[inline(always)]
    fn round_f16(self, a: F) -> F {
        simd!([
            _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0])),
            _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1])),
        ])
    }
    #[inline(always)]
    fn to_f16(self, a: F) -> [u8; 32] {
        let mut out = [0; 32];
        for (out, a) in out.chunks_exact_mut(16).zip(a) {
            simd!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)));
        }
        out
    }
    #[inline(always)]
    fn transpose(self, a: &[F; LANES]) -> [F; LANES] {
        // Block (r, c) holds rows 8r.. and columns 8c..; transposed, it is half r of vectors 8c...
        let mut out = *a;
        for r in 0..2 {
            for c in 0..2 {
                let mut block = [a[0][0]; 8];
                for i in 0..8 {
                    block[i] = a[8 * r + i][c];
                }
                let block = self.transpose8(block);
                for i in 0..8 {
                    out[8 * c + i][r] = block[i];
                }
            }
        }
        out
    }

    #[inline(always)]
    fn pack<W: Width>(self, codes: [F; 2], out: &mut [u8]) {
        let byte = self.splat(f32::from_bits(0xff));
        let (low, high) = (both!(_mm256_and_ps, codes[0], byte), both!(_mm256_and_ps, codes[1], byte));
        simd!({
            // Packing works within 128-bit halves; the last permutation puts the 4-byte runs back in order.
            let low = _mm256_packus_epi32(_mm256_castps_si256(low[0]), _mm256_castps_si256(low[1]));
            let high = _mm256_packus_epi32(_mm256_castps_si256(high[0]), _mm256_castps_si256(high[1]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
            match W::BITS {
                Bits::Eight => _mm256_storeu_si256(out[..32].as_mut_ptr().cast(), bytes),
                Bits::Four => {
                    // q0 + 16 q1 of neighbouring bytes, in 16 bits.
                    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
                    let packed = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
                    _mm_storeu_si128(out[..16].as_mut_ptr().cast(), packed);
                }
                Bits::Three | Bits::Five | Bits::Six => {
                    let bits = W::BITS.get() as i32;
                    // q0 + 2^b q1 of neighbouring bytes, in 16 bits; then p0 + 2^2b p1 of neighbouring pairs, in 32 bits.
                    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(1 | 1 << (8 + bits)));
                    let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | 1 << (16 + 2 * bits)));
                    // And eight codes in 64 bits, of which they take `bits` bytes.
                    let low = _mm256_and_si256(quads, _mm256_set1_epi64x(i64::from(u32::MAX)));
                    let high = _mm256_sll_epi64(_mm256_srli_epi64::<32>(quads), _mm_cvtsi32_si128(4 * bits));
                    let mut eights = [0u64; 4];
                    _mm256_storeu_si256(eights.as_mut_ptr().cast(), _mm256_or_si256(low, high));
                    for (out, eight) in out[..W::packed_len(2 * LANES)].chunks_exact_mut(W::BITS.get()).zip(eights) {
                        out.copy_from_slice(&eight.to_le_bytes()[..W::BITS.get()]);
                    }
                }
                Bits::Two => {
                    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0401));
                    // p0 + 16 p1 of neighbouring pairs, in 32 bits.
                    let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0010_0001));
                    let words = _mm_packus_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
                    _mm_storel_epi64(out[..8].as_mut_ptr().cast(), _mm_packus_epi16(words, words));
                }
            }
        })
    }
    #[inline(always)]
    fn unpack<W: Width>(self, bytes: &[u8]) -> [F; 2] {
        simd!({
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_set1_epi32(i32::from(W::BITS.max_code()));
            let mut out = [self.splat(0.0); 2];
            for i in 0..4 {
                let codes = match W::BITS {
                    Bits::Eight => _mm256_cvtepu8_epi32(_mm_loadl_epi64(head::<8>(&bytes[8 * i..]).as_ptr().cast())),
                    Bits::Four => {
                        let word = _mm256_set1_epi32(i32::from_le_bytes(*head(&bytes[4 * i..])));
                        _mm256_srlv_epi32(word, _mm256_slli_epi32::<2>(lanes))
                    }
                    Bits::Three | Bits::Five | Bits::Six => {
                        // Eight codes are `bits` bytes. Each lane takes the two bytes that its code may lie in.
                        let mut eight = [0; 8];
                        eight[..W::BITS.get()].copy_from_slice(&bytes[W::BITS.get() * i..][..W::BITS.get()]);
                        let (pick, shift) = const { pick_eight(W::BITS) };
                        let pick = _mm256_loadu_si256(pick.as_ptr().cast());
                        let words = _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(eight)), pick);
                        _mm256_srlv_epi32(words, _mm256_loadu_si256(shift.as_ptr().cast()))
                    }
                    Bits::Two => {
                        let word = _mm256_set1_epi32(i32::from(i16::from_le_bytes(*head(&bytes[2 * i..]))));
                        _mm256_srlv_epi32(word, _mm256_slli_epi32::<1>(lanes))
                    }
                };
                out[i / 2][i % 2] = _mm256_cvtepi32_ps(_mm256_and_si256(codes, mask));
            }
            out
        })
    }

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; LANES]) -> __m128i {
        simd!(_mm_loadu_si128(bytes.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, a: __m128i, out: &mut [u8; LANES]) {
        simd!(_mm_storeu_si128(out.as_mut_ptr().cast(), a));
    }
    #[inline(always)]
    fn splat_byte(self, x: u8) -> __m128i {
        simd!(_mm_set1_epi8(x as i8))
    }
    #[inline(always)]
    fn and(self, a: __m128i, b: __m128i) -> __m128i {
        simd!(_mm_and_si128(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m128i, b: __m128i) -> __m128i {
        simd!(_mm_or_si128(a, b))
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: __m128i) -> __m128i {
        // Words are shifted; the bits that cross into the next byte are cleared.
        simd!(_mm_and_si128(_mm_slli_epi16::<N>(a), _mm_set1_epi8((0xffu8 << N) as i8)))
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: __m128i) -> __m128i {
        simd!(_mm_and_si128(_mm_srli_epi16::<N>(a), _mm_set1_epi8((0xffu8 >> N) as i8)))
    }
    #[inline(always)]
    fn choose(self, table: &[i8; 16], codes: __m128i) -> __m128i {
        simd!(_mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), _mm_and_si128(codes, _mm_set1_epi8(15))))
    }
    #[inline(always)]
    fn widen_bytes(self, a: __m128i) -> F {
        simd!({
            let wide = [_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(a, a))];
            [_mm256_cvtepi32_ps(wide[0]), _mm256_cvtepi32_ps(wide[1])]
        })
    }
    #[inline(always)]
    fn widen_signed(self, a: __m128i) -> F {
        simd!({
            let wide = [_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a))];
            [_mm256_cvtepi32_ps(wide[0]), _mm256_cvtepi32_ps(wide[1])]
        })
    }

    #[inline(always)]
    fn add_to_f64(self, a: F, sums: &mut [f64; LANES]) {
        simd!({
            let quarters = quarters!(a);
            for i in 0..4 {
                let p = sums[4 * i..4 * i + 4].as_mut_ptr();
                _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), quarters[i]));
            }
        })
    }
    #[inline(always)]
    fn products_f64(self, a: F, b: F, sums: &mut Products<Self>) {
        simd!({
            let (x, y) = (quarters!(a), quarters!(b));
            for i in 0..4 {
                sums[0][i] = _mm256_fmadd_pd(x[i], y[i], sums[0][i]);
                sums[1][i] = _mm256_fmadd_pd(x[i], x[i], sums[1][i]);
                sums[2][i] = _mm256_fmadd_pd(y[i], y[i], sums[2][i]);
            }
        })
    }
    #[inline(always)]
    fn products_zero(self) -> Products<Self> {
        [[simd!(_mm256_setzero_pd()); 4]; 3]
    }
    #[inline(always)]
    fn products_to_arrays(self, sums: &Products<Self>) -> [[f64; LANES]; 3] {
        let mut out = [[0.0; LANES]; 3];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, &sum) in out.chunks_exact_mut(4).zip(sums) {
                simd!(_mm256_storeu_pd(out.as_mut_ptr(), sum));
            }
        }
        out
    }
}
