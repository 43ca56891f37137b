//! AVX-512 (F, BW, DQ, VL): a vector is one register.
// The intrinsics below are unsafe only for the feature they need, and for the pointer of loads and stores.

#[allow(clippy::wildcard_imports, reason = "intrinsics have names of their own")]
use std::arch::x86_64::*;

use super::{Kernel, LANES, Products, Simd, Step, Width, head};
use crate::Bits;

/// Proof that the CPU has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
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

/// Reduces four vectors to one: lane k of each quarter holds that quarter's part of vector k.
macro_rules! quad {
    ($a:expr, $i:expr, $op:ident) => {{
        let (a, b, c, d) = ($a[$i], $a[$i + 1], $a[$i + 2], $a[$i + 3]);
        let ab = $op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = $op(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        $op(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd))
    }};
}

/// Reduces sixteen vectors by pairs, so that lane k of the result is the reduction of `a[k]`. A macro, since a closure
/// that is not inlined would lose the instruction set.
macro_rules! of_each {
    ($a:expr, $op:ident) => {{
        let (p, q, r, t) = (quad!($a, 0, $op), quad!($a, 4, $op), quad!($a, 8, $op), quad!($a, 12, $op));
        let pq = $op(_mm512_shuffle_f32x4::<0x44>(p, q), _mm512_shuffle_f32x4::<0xee>(p, q));
        let rt = $op(_mm512_shuffle_f32x4::<0x44>(r, t), _mm512_shuffle_f32x4::<0xee>(r, t));
        $op(_mm512_shuffle_f32x4::<0x88>(pq, rt), _mm512_shuffle_f32x4::<0xdd>(pq, rt))
    }};
}

/// For `_mm512_shuffle_epi8` of sixteen packed codes in each quarter: the two bytes that each lane's code may lie in, and the
/// code's first bit in them.
const fn pick_sixteen(bits: Bits) -> ([u8; 64], [i32; 16]) {
    let (mut pick, mut shift, mut lane) = ([0x80; 64], [0; 16], 0);
    while lane < 16 {
        let bit = lane * bits.get();
        pick[4 * lane] = (bit / 8) as u8;
        pick[4 * lane + 1] = (bit / 8 + 1) as u8;
        shift[lane] = (bit % 8) as i32;
        lane += 1;
    }
    (pick, shift)
}

impl Simd for Avx512 {
    type F = __m512;
    type M = __mmask16;
    type B = __m128i;
    type D = [__m512d; 2];

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn enter<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
            kernel.run(s)
        }
        simd!(enter(self, kernel))
    }
    #[inline(always)]
    fn call<T: Step<Self>>(self, step: T) -> T::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn enter<T: Step<Avx512>>(s: Avx512, step: T) -> T::Output {
            step.take(s)
        }
        simd!(enter(self, step))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        simd!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load_lanes(self, x: &[f32; LANES]) -> __m512 {
        simd!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn to_array(self, a: __m512) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd!(_mm512_storeu_ps(out.as_mut_ptr(), a));
        out
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> __m512 {
        simd!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            bytes.as_ptr().cast()
        )))))
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> __m512 {
        simd!(_mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> __m512 {
        simd!(_mm512_loadu_ps(bytes.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f64(self, bytes: &[u8; 128]) -> __m512 {
        simd!({
            let p: *const f64 = bytes.as_ptr().cast();
            let low = _mm512_cvtpd_ps(_mm512_loadu_pd(p));
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), _mm512_cvtpd_ps(_mm512_loadu_pd(p.add(8))))
        })
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        simd!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        simd!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        simd!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn max_abs(self, a: __m512, b: __m512) -> __m512 {
        // The greater magnitude (3), with its sign cleared (2 << 2).
        simd!(_mm512_range_ps::<0b1011>(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min_of_each(self, a: &[__m512; LANES]) -> __m512 {
        simd!(of_each!(a, _mm512_min_ps))
    }
    #[inline(always)]
    fn max_of_each(self, a: &[__m512; LANES]) -> __m512 {
        simd!(of_each!(a, _mm512_max_ps))
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        simd!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_mask_blend_ps(m, b, a))
    }
    #[inline(always)]
    fn bits(self, m: __mmask16) -> u16 {
        m
    }

    #[inline(always)]
    fn round_f16(self, a: __m512) -> __m512 {
        simd!(_mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)))
    }
    #[inline(always)]
    fn to_f16(self, a: __m512) -> [u8; 32] {
        let mut out = [0; 32];
        simd!(_mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)));
        out
    }
    #[inline(always)]
    fn transpose(self, a: &[__m512; LANES]) -> [__m512; LANES] {
        simd!({
            let zero = _mm512_setzero_ps();
            // 4x4 blocks within the 128-bit quarters: b[4i + j] holds, in quarter q, column 4q + j of rows 4i to 4i + 3.
            let mut b = [zero; LANES];
            for i in (0..LANES).step_by(4) {
                let ab_lo = _mm512_unpacklo_ps(a[i], a[i + 1]);
                let ab_hi = _mm512_unpackhi_ps(a[i], a[i + 1]);
                let cd_lo = _mm512_unpacklo_ps(a[i + 2], a[i + 3]);
                let cd_hi = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
                b[i] = _mm512_shuffle_ps::<0x44>(ab_lo, cd_lo);
                b[i + 1] = _mm512_shuffle_ps::<0xee>(ab_lo, cd_lo);
                b[i + 2] = _mm512_shuffle_ps::<0x44>(ab_hi, cd_hi);
                b[i + 3] = _mm512_shuffle_ps::<0xee>(ab_hi, cd_hi);
            }
            // Then a 4x4 transposition of quarters.
            let mut c = [zero; LANES];
            for j in 0..4 {
                let lo_even = _mm512_shuffle_f32x4::<0x88>(b[j], b[4 + j]);
                let lo_odd = _mm512_shuffle_f32x4::<0xdd>(b[j], b[4 + j]);
                let hi_even = _mm512_shuffle_f32x4::<0x88>(b[8 + j], b[12 + j]);
                let hi_odd = _mm512_shuffle_f32x4::<0xdd>(b[8 + j], b[12 + j]);
                c[j] = _mm512_shuffle_f32x4::<0x88>(lo_even, hi_even);
                c[4 + j] = _mm512_shuffle_f32x4::<0x88>(lo_odd, hi_odd);
                c[8 + j] = _mm512_shuffle_f32x4::<0xdd>(lo_even, hi_even);
                c[12 + j] = _mm512_shuffle_f32x4::<0xdd>(lo_odd, hi_odd);
            }
            c
        })
    }

    #[inline(always)]
    fn pack<W: Width>(self, codes: [__m512; 2], out: &mut [u8]) {
        simd!({
            let low = _mm512_cvtepi32_epi8(_mm512_castps_si512(codes[0]));
            let high = _mm512_cvtepi32_epi8(_mm512_castps_si512(codes[1]));
            let bytes = _mm256_set_m128i(high, low);
            match W::BITS {
                Bits::Eight => _mm256_storeu_si256(out[..32].as_mut_ptr().cast(), bytes),
                Bits::Four => {
                    // q0 + 16 q1 of neighbouring bytes, in 16 bits.
                    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
                    _mm_storeu_si128(out[..16].as_mut_ptr().cast(), _mm256_cvtepi16_epi8(pairs));
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
                    _mm_storel_epi64(out[..8].as_mut_ptr().cast(), _mm256_cvtepi32_epi8(quads));
                }
            }
        })
    }
    #[inline(always)]
    fn unpack<W: Width>(self, bytes: &[u8]) -> [__m512; 2] {
        simd!({
            let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let mask = _mm512_set1_epi32(i32::from(W::BITS.max_code()));
            let mut out = [self.splat(0.0); 2];
            for i in 0..2 {
                let codes = match W::BITS {
                    Bits::Eight => _mm512_cvtepu8_epi32(_mm_loadu_si128(head::<16>(&bytes[16 * i..]).as_ptr().cast())),
                    Bits::Four => {
                        // Lanes 0 to 7 take their four bits from the lower half of a 64-bit word, the others from the upper.
                        let word = _mm512_set1_epi64(i64::from_le_bytes(*head(&bytes[8 * i..])));
                        let halves = _mm512_permutexvar_epi32(_mm512_srli_epi32::<3>(lanes), word);
                        _mm512_srlv_epi32(halves, _mm512_slli_epi32::<2>(_mm512_and_si512(lanes, _mm512_set1_epi32(7))))
                    }
                    Bits::Three | Bits::Five | Bits::Six => {
                        // Sixteen codes are at most 12 bytes. Each lane takes the two bytes that its code may lie in.
                        let mut sixteen = [0; 16];
                        let size = W::packed_len(LANES);
                        sixteen[..size].copy_from_slice(&bytes[size * i..][..size]);
                        let (pick, shift) = const { pick_sixteen(W::BITS) };
                        let all = _mm512_broadcast_i32x4(_mm_loadu_si128(sixteen.as_ptr().cast()));
                        let words = _mm512_shuffle_epi8(all, _mm512_loadu_si512(pick.as_ptr().cast()));
                        _mm512_srlv_epi32(words, _mm512_loadu_si512(shift.as_ptr().cast()))
                    }
                    Bits::Two => {
                        let word = _mm512_set1_epi32(i32::from_le_bytes(*head(&bytes[4 * i..])));
                        _mm512_srlv_epi32(word, _mm512_slli_epi32::<1>(lanes))
                    }
                };
                out[i] = _mm512_cvtepi32_ps(_mm512_and_si512(codes, mask));
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
    fn widen_bytes(self, a: __m128i) -> __m512 {
        simd!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a)))
    }
    #[inline(always)]
    fn widen_signed(self, a: __m128i) -> __m512 {
        simd!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)))
    }

    #[inline(always)]
    fn add_to_f64(self, a: __m512, sums: &mut [f64; LANES]) {
        simd!({
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a));
            let p = sums.as_mut_ptr();
            _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), low));
            _mm512_storeu_pd(p.add(8), _mm512_add_pd(_mm512_loadu_pd(p.add(8)), high));
        })
    }
    #[inline(always)]
    fn products_f64(self, a: __m512, b: __m512, sums: &mut Products<Self>) {
        simd!({
            let x = [_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a))];
            let y = [_mm512_cvtps_pd(_mm512_castps512_ps256(b)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(b))];
            for i in 0..2 {
                sums[0][i] = _mm512_fmadd_pd(x[i], y[i], sums[0][i]);
                sums[1][i] = _mm512_fmadd_pd(x[i], x[i], sums[1][i]);
                sums[2][i] = _mm512_fmadd_pd(y[i], y[i], sums[2][i]);
            }
        })
    }
    #[inline(always)]
    fn products_zero(self) -> Products<Self> {
        [[simd!(_mm512_setzero_pd()); 2]; 3]
    }
    #[inline(always)]
    fn products_to_arrays(self, sums: &Products<Self>) -> [[f64; LANES]; 3] {
        let mut out = [[0.0; LANES]; 3];
        for (out, sums) in out.iter_mut().zip(sums) {
            simd!({
                _mm512_storeu_pd(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_pd(out.as_mut_ptr().add(8), sums[1]);
            });
        }
        out
    }
}
