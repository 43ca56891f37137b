//! Sixteen f32 lanes, on every instruction set.
//!
//! Each algorithm is written once, over [`Simd`]. A vector always has sixteen lanes, however many registers that takes,
//! and every operation is one that IEEE 754 or integer arithmetic defines, so that all instruction sets give the same
//! bytes by construction. [`scalar`] is the specification that the others are tested against.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

use crate::Bits;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Adding it to a value in 0..=255 rounds that value to an integer, ties to even, and leaves the integer in the low byte.
pub(crate) const MAGIC: f32 = 8_388_608.0;

/// The operations of one instruction set. A value of the implementing type is proof that the CPU has it: only
/// [`Isa`](crate::Isa) makes one, after detection.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen booleans.
    type M: Copy;
    /// Sixteen bytes.
    type B: Copy;

    /// Runs `kernel` compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
    /// Takes `step` by a call, compiled for this instruction set.
    fn call<T: Step<Self>>(self, step: T) -> T::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load_lanes(self, x: &[f32; LANES]) -> Self::F;
    fn to_array(self, a: Self::F) -> [f32; LANES];
    /// Sixteen bfloat16, two bytes each.
    fn load_bf16(self, bytes: &[u8; 32]) -> Self::F;
    /// Sixteen binary16.
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F;
    /// Sixteen binary32.
    fn load_f32(self, bytes: &[u8; 64]) -> Self::F;
    /// Sixteen binary64, rounded to nearest.
    fn load_f64(self, bytes: &[u8; 128]) -> Self::F;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// The square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// max(a, |b|), for a that is not negative.
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; which zero comes of -0 and +0, and what of NaN, is unspecified.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The greater; as [`min`](Self::min).
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The least lane of each vector: lane k of the result comes from `a[k]`.
    fn min_of_each(self, a: &[Self::F; LANES]) -> Self::F;
    /// The greatest lane of each vector.
    fn max_of_each(self, a: &[Self::F; LANES]) -> Self::F;

    /// a < b; false with a NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// a where m, else b.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Bit k is lane k.
    fn bits(self, m: Self::M) -> u16;

    /// Rounded to binary16, ties to even, and back.
    fn round_f16(self, a: Self::F) -> Self::F;
    /// Rounded to binary16, little-endian.
    fn to_f16(self, a: Self::F) -> [u8; 32];
    /// Lane j of the result's vector i is lane i of `a[j]`.
    fn transpose(self, a: &[Self::F; LANES]) -> [Self::F; LANES];

    /// Packs the low bytes of `MAGIC + code` in 32 lanes, first code lowest.
    fn pack<W: Width>(self, codes: [Self::F; 2], out: &mut [u8]);
    /// 32 packed codes as floats.
    fn unpack<W: Width>(self, bytes: &[u8]) -> [Self::F; 2];
    fn load_bytes(self, bytes: &[u8; LANES]) -> Self::B;
    fn store_bytes(self, a: Self::B, out: &mut [u8; LANES]);
    fn splat_byte(self, x: u8) -> Self::B;
    fn and(self, a: Self::B, b: Self::B) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Each byte shifted to the left by N bits, below 8.
    fn shl<const N: i32>(self, a: Self::B) -> Self::B;
    /// Each byte shifted to the right by N bits, below 8.
    fn shr<const N: i32>(self, a: Self::B) -> Self::B;
    /// Sixteen bytes as floats.
    fn widen_bytes(self, a: Self::B) -> Self::F;
    /// Sixteen signed bytes as floats.
    fn widen_signed(self, a: Self::B) -> Self::F;
    /// The entries of a table that sixteen bytes below 16 choose.
    fn choose(self, table: &[i8; 16], codes: Self::B) -> Self::B;

    /// Adds each lane to its sum.
    fn add_to_f64(self, a: Self::F, sums: &mut [f64; LANES]);
    /// sums.0 += a*b, sums.1 += a*a, sums.2 += b*b, each product exact, each sum in f64.
    fn products_f64(self, a: Self::F, b: Self::F, sums: &mut Products<Self>);
    /// Fresh sums for [`products_f64`](Self::products_f64).
    fn products_zero(self) -> Products<Self>;
    /// The sums, lane by lane.
    fn products_to_arrays(self, sums: &Products<Self>) -> [[f64; LANES]; 3];

    /// Sixteen f64 sums, in registers.
    type D: Copy;
}

/// Three running sums of sixteen f64 lanes each.
pub(crate) type Products<S> = [<S as Simd>::D; 3];

/// An algorithm over any instruction set. `run` must be `#[inline(always)]`, as must all it calls with `S`, so that it is
/// compiled with the instruction set's features enabled.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A part of kernels that depends on neither the dtype of weights nor the width of codes. It is compiled once for each
/// instruction set and called, where inlining would compile it again for each dtype and width. `take` must be
/// `#[inline(always)]`, as must all it calls with `S`.
pub(crate) trait Step<S: Simd> {
    type Output;
    fn take(self, s: S) -> Self::Output;
}

/// The elements of one dtype in a byte slice.
pub(crate) trait Element {
    const SIZE: usize;
    /// Sixteen elements from the start of `bytes`.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F;
    /// The element at the start of `bytes`.
    fn one(bytes: &[u8]) -> f32;
    /// The same, not rounded.
    fn wide(bytes: &[u8]) -> f64;
}

/// A width of codes as a type, so that kernels are compiled for each.
pub(crate) trait Width {
    const BITS: Bits;

    /// Bytes of packed codes.
    #[inline(always)]
    fn packed_len(codes: usize) -> usize {
        Self::BITS.packed_len(codes)
    }

    /// Code `i` of packed codes.
    #[inline(always)]
    fn code(bytes: &[u8], i: usize) -> f32 {
        f32::from(Self::BITS.code(bytes, i))
    }
}

macro_rules! width {
    ($name:ident) => {
        pub(crate) struct $name;
        impl Width for $name {
            const BITS: Bits = Bits::$name;
        }
    };
}

width!(Two);
width!(Three);
width!(Four);
width!(Five);
width!(Six);
width!(Eight);

/// Evaluates `$body` with the type of a width.
macro_rules! for_width {
    ($bits:expr, $W:ident => $body:expr) => {
        match $bits {
            $crate::Bits::Two => {
                type $W = $crate::simd::Two;
                $body
            }
            $crate::Bits::Three => {
                type $W = $crate::simd::Three;
                $body
            }
            $crate::Bits::Four => {
                type $W = $crate::simd::Four;
                $body
            }
            $crate::Bits::Five => {
                type $W = $crate::simd::Five;
                $body
            }
            $crate::Bits::Six => {
                type $W = $crate::simd::Six;
                $body
            }
            $crate::Bits::Eight => {
                type $W = $crate::simd::Eight;
                $body
            }
        }
    };
}
pub(crate) use for_width;

fn head<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("the caller passes a whole element or vector")
}

macro_rules! element {
    ($name:ident, $size:literal, $load:ident, $bytes:ident => $wide:expr) => {
        pub(crate) struct $name;
        impl Element for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
                s.$load(head(bytes))
            }
            #[inline(always)]
            fn one(bytes: &[u8]) -> f32 {
                let $bytes = *head(bytes);
                $wide as f32
            }
            #[inline(always)]
            fn wide(bytes: &[u8]) -> f64 {
                let $bytes = *head(bytes);
                $wide as f64
            }
        }
    };
}

element!(F64, 8, load_f64, b => f64::from_le_bytes(b));
element!(F32, 4, load_f32, b => f32::from_le_bytes(b));
element!(F16, 2, load_f16, b => half::f16::from_le_bytes(b).to_f32());
element!(BF16, 2, load_bf16, b => f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));

/// Asks for the cache line `ahead` bytes after the start of `bytes`, which may be beyond the slice.
#[inline(always)]
pub(crate) fn prefetch(bytes: &[u8], ahead: usize) {
    let address = bytes.as_ptr().wrapping_add(ahead);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults on no address; SSE is part of the target's baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM is a hint that reads nothing and faults on no address.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Evaluates `$body` with the element type of a dtype.
macro_rules! for_dtype {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::Dtype::F64 => {
                type $E = $crate::simd::F64;
                $body
            }
            $crate::Dtype::F32 => {
                type $E = $crate::simd::F32;
                $body
            }
            $crate::Dtype::F16 => {
                type $E = $crate::simd::F16;
                $body
            }
            $crate::Dtype::BF16 => {
                type $E = $crate::simd::BF16;
                $body
            }
        }
    };
}
pub(crate) use for_dtype;

/// The sum of sixteen lanes in the one order that all results use: halves onto halves.
pub(crate) fn sum_lanes(mut lanes: [f64; LANES]) -> f64 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
