//! The specification: every operation lane by lane, in plain Rust.

use half::f16;

use super::{Kernel, LANES, Products, Simd, Step, Width, head};

/// No instruction set beyond the target's baseline.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type F = [f32; LANES];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

#[inline(always)]
fn element<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
    *head(&bytes[N * i..])
}

impl Simd for Scalar {
    type F = F;
    type M = [bool; LANES];
    type B = [u8; LANES];
    type D = [f64; LANES];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn call<T: Step<Self>>(self, step: T) -> T::Output {
        #[inline(never)]
        fn enter<T: Step<Scalar>>(s: Scalar, step: T) -> T::Output {
            step.take(s)
        }
        enter(self, step)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load_lanes(self, x: &[f32; LANES]) -> F {
        *x
    }
    #[inline(always)]
    fn to_array(self, a: F) -> [f32; LANES] {
        a
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> F {
        each(|i| f32::from_bits(u32::from(u16::from_le_bytes(element(bytes, i))) << 16))
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> F {
        each(|i| f16::from_le_bytes(element(bytes, i)).to_f32())
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> F {
        each(|i| f32::from_le_bytes(element(bytes, i)))
    }
    #[inline(always)]
    fn load_f64(self, bytes: &[u8; 128]) -> F {
        each(|i| f64::from_le_bytes(element(bytes, i)) as f32)
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        each(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn max_abs(self, a: F, b: F) -> F {
        self.max(a, self.abs(b))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn min_of_each(self, a: &[F; LANES]) -> F {
        each(|k| a[k].into_iter().fold(f32::INFINITY, f32::min))
    }
    #[inline(always)]
    fn max_of_each(self, a: &[F; LANES]) -> F {
        each(|k| a[k].into_iter().fold(f32::NEG_INFINITY, f32::max))
    }

    #[inline(always)]
    fn lt(self, a: F, b: F) -> [bool; LANES] {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn select(self, m: [bool; LANES], a: F, b: F) -> F {
        each(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn bits(self, m: [bool; LANES]) -> u16 {
        m.iter().enumerate().fold(0, |bits, (i, &b)| bits | u16::from(b) << i)
    }

    #[inline(always)]
    fn round_f16(self, a: F) -> F {
        each(|i| f16::from_f32(a[i]).to_f32())
    }
    #[inline(always)]
    fn to_f16(self, a: F) -> [u8; 32] {
        std::array::from_fn(|i| f16::from_f32(a[i / 2]).to_le_bytes()[i % 2])
    }
    #[inline(always)]
    fn transpose(self, a: &[F; LANES]) -> [F; LANES] {
        std::array::from_fn(|i| each(|j| a[j][i]))
    }

    #[inline(always)]
    fn pack<W: Width>(self, codes: [F; 2], out: &mut [u8]) {
        let out = &mut out[..W::packed_len(2 * LANES)];
        out.fill(0);
        for (i, code) in codes.as_flattened().iter().enumerate() {
            W::BITS.put(out, i, code.to_bits() as u8);
        }
    }
    #[inline(always)]
    fn unpack<W: Width>(self, bytes: &[u8]) -> [F; 2] {
        [each(|i| W::code(bytes, i)), each(|i| W::code(bytes, LANES + i))]
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; LANES]) -> [u8; LANES] {
        *bytes
    }
    #[inline(always)]
    fn store_bytes(self, a: [u8; LANES], out: &mut [u8; LANES]) {
        *out = a;
    }
    #[inline(always)]
    fn splat_byte(self, x: u8) -> [u8; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn and(self, a: [u8; LANES], b: [u8; LANES]) -> [u8; LANES] {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: [u8; LANES], b: [u8; LANES]) -> [u8; LANES] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: [u8; LANES]) -> [u8; LANES] {
        a.map(|byte| byte << N)
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: [u8; LANES]) -> [u8; LANES] {
        a.map(|byte| byte >> N)
    }
    #[inline(always)]
    fn widen_bytes(self, a: [u8; LANES]) -> F {
        each(|i| f32::from(a[i]))
    }
    #[inline(always)]
    fn widen_signed(self, a: [u8; LANES]) -> F {
        each(|i| f32::from(a[i] as i8))
    }
    #[inline(always)]
    fn choose(self, table: &[i8; 16], codes: [u8; LANES]) -> [u8; LANES] {
        codes.map(|code| table[usize::from(code & 15)] as u8)
    }

    #[inline(always)]
    fn add_to_f64(self, a: F, sums: &mut [f64; LANES]) {
        for i in 0..LANES {
            sums[i] += f64::from(a[i]);
        }
    }
    #[inline(always)]
    fn products_f64(self, a: F, b: F, sums: &mut Products<Self>) {
        for i in 0..LANES {
            let (x, y) = (f64::from(a[i]), f64::from(b[i]));
            // The products are exact in f64, so a fused multiply-add elsewhere rounds the same.
            sums[0][i] += x * y;
            sums[1][i] += x * x;
            sums[2][i] += y * y;
        }
    }
    #[inline(always)]
    fn products_zero(self) -> Products<Self> {
        [[0.0; LANES]; 3]
    }
    #[inline(always)]
    fn products_to_arrays(self, sums: &Products<Self>) -> [[f64; LANES]; 3] {
        *sums
    }
}
