//! Speed of the kernels as a share of this machine's read bandwidth, and their quality on three distributions.
//!
//!     cargo bench -p arrow-quant-kernels --bench kernels -- [quality | speed [PART OF A ROW]]
//!
//! One core. Every figure is the median of at least seven runs, all in one process; GB/s counts the bytes read.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

mod random;

use std::hint::black_box;
use std::time::Instant;

use arrow_quant_kernels::{
    Bits, Dtype, GroupSize, Isa, Method, Scheme, Settings, Weights, cosine_similarity, dequantize, pair_sums, quantize,
};

use random::Random;

fn main() {
    let mut wanted = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let (table, rows) = (wanted.next(), wanted.next().unwrap_or_default());
    if table.as_deref() != Some("speed") {
        quality();
    }
    if table.as_deref() != Some("quality") {
        speed(&rows);
    }
}

impl Random {
    /// Student's t with five degrees of freedom.
    fn student(&mut self) -> f64 {
        let square: f64 = (0..5).map(|_| self.gaussian().powi(2)).sum();
        self.gaussian() / (square / 5.0).sqrt()
    }
}

fn settings(bits: i64, group_size: i64, scheme: Scheme, method: Method) -> Settings {
    Settings {
        bits: Bits::try_from(bits).unwrap(),
        group_size: GroupSize::try_from(group_size).unwrap(),
        scheme,
        method,
    }
}

fn f32_bytes(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|x| (x as f32).to_le_bytes()).collect()
}

fn bf16_bytes(f32s: &[u8]) -> Vec<u8> {
    f32s.chunks_exact(4)
        .flat_map(|b| {
            let bits = u32::from_le_bytes(b.try_into().unwrap());
            ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).to_le_bytes()[..2].to_vec()
        })
        .collect()
}

fn quality() {
    const N: usize = 1 << 19;
    let isa = Isa::active().unwrap();
    let mut random = Random(1);
    let distributions = [
        f32_bytes((0..N).map(|_| random.gaussian())),
        f32_bytes((0..N).map(|_| random.laplace())),
        f32_bytes((0..N).map(|_| random.student())),
    ];
    println!("SQNR in dB, {N} f32 weights, f16 parameters; fixed seed\n");
    println!("| bits | group | scheme | method | Gaussian | Laplace | Student-t 5 |\n|---|---|---|---|---|---|---|");
    for (bits, group) in [(2, 32), (2, 64), (2, 128), (4, 32), (4, 64), (4, 128), (8, 64)] {
        for &scheme in Scheme::ALL {
            for &method in Method::ALL {
                let sqnr = |bytes| {
                    let weights = Weights::new(Dtype::F32, bytes, 4096).unwrap();
                    quantize(isa, weights, settings(bits, group, scheme, method), None).unwrap().errors.sqnr_db()
                };
                let [g, l, t] = [0, 1, 2].map(|i| sqnr(&distributions[i]));
                println!("| {bits} | {group} | {scheme} | {method} | {g:.2} | {l:.2} | {t:.2} |");
            }
        }
    }
    println!();
}

/// Median seconds of a run.
fn time<T>(mut f: impl FnMut() -> T) -> f64 {
    black_box(f());
    let mut seconds = Vec::new();
    let start = Instant::now();
    while seconds.len() < 7 || (start.elapsed().as_secs_f64() < 0.5 && seconds.len() < 101) {
        let start = Instant::now();
        black_box(f());
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Reads all bytes as fast as the CPU can, in `STREAMS` streams.
fn read<const STREAMS: usize>(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_setzero_si512, _mm512_xor_si512};

        #[target_feature(enable = "avx512f")]
        fn avx512<const STREAMS: usize>(bytes: &[u8]) -> u64 {
            let stream = bytes.len() / STREAMS;
            let mut sums = [_mm512_setzero_si512(); 8];
            for at in (0..stream - 511).step_by(512 / STREAMS) {
                for (k, sum) in sums.iter_mut().enumerate() {
                    let p = bytes[k % STREAMS * stream + at + k / STREAMS * 64..][..64].as_ptr();
                    // SAFETY: the slice has the 64 bytes read, at any alignment.
                    *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(p.cast()) });
                }
            }
            let sum = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b));
            _mm512_reduce_add_epi64(sum) as u64
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: just detected.
            return unsafe { avx512::<STREAMS>(bytes) };
        }
    }
    bytes.chunks_exact(8).fold(0, |sum, word| sum ^ u64::from_le_bytes(word.try_into().unwrap()))
}

/// One line of the table of speeds.
struct Row {
    name: String,
    isa: Isa,
    weights: usize,
    bytes: usize,
}

fn speed(rows: &str) {
    // Far beyond the last-level cache.
    const N: usize = 100 << 20;
    let mut random = Random(2);
    let f32s = {
        let piece = f32_bytes((0..1 << 20).map(|_| 0.02 * random.gaussian()));
        piece.repeat(N >> 20)
    };
    let bf16s = bf16_bytes(&f32s);
    let seconds = time(|| read::<1>(&f32s)).min(time(|| read::<2>(&f32s)));
    let bandwidth = f32s.len() as f64 / seconds / 1e9;
    println!("one core reads {bandwidth:.1} GB/s\n");
    println!("| kernel | instruction set | 10⁶ weights/s | GB/s read | of read bandwidth |\n|---|---|---|---|---|");
    let measure = |row: Row, run: &dyn Fn()| {
        if !format!("{} {:?}", row.name, row.isa).contains(rows) {
            return;
        }
        let seconds = time(run);
        let rate = row.bytes as f64 / seconds / 1e9;
        let million = row.weights as f64 / seconds / 1e6;
        let share = 100.0 * rate / bandwidth;
        println!("| {} | {:?} | {million:.0} | {rate:.2} | {share:.0} % |", row.name, row.isa);
    };
    for isa in Isa::available() {
        let count = if isa.name() == "scalar" { N >> 6 } else { N };
        for (method, count) in [(Method::MinMax, count), (Method::Mse, count >> 3)] {
            let weights = Weights::new(Dtype::BF16, &bf16s[..2 * count], 4096).unwrap();
            for (bits, group) in [(2, 64), (2, 128), (4, 64), (4, 128), (8, 64)] {
                let run = settings(bits, group, Scheme::Affine, method);
                let name = format!("quantize {method} INT{bits} g{group} BF16");
                measure(Row { name, isa, weights: count, bytes: 2 * count }, &|| {
                    black_box(blocks(isa, weights, run));
                });
            }
        }
        let one = Weights::one_row(Dtype::F32, &f32s[..2 * count]).unwrap();
        let other = Weights::one_row(Dtype::F32, &f32s[2 * count..4 * count]).unwrap();
        let pair = |name: &str| Row { name: format!("{name} F32"), isa, weights: count, bytes: 4 * count };
        measure(pair("cosine_similarity"), &|| {
            black_box(cosine_similarity(isa, one, other).unwrap());
        });
        measure(pair("pair_sums"), &|| {
            black_box(pair_sums(isa, one, other).unwrap());
        });
        let weights = Weights::new(Dtype::BF16, &bf16s[..2 << 16], 4096).unwrap();
        for bits in [2, 4, 8] {
            let quantized = quantize(isa, weights, settings(bits, 128, Scheme::Affine, Method::MinMax), None).unwrap();
            let name = format!("dequantize INT{bits} g128, bytes written in cache");
            measure(Row { name, isa, weights: 1 << 16, bytes: 4 << 16 }, &|| {
                black_box(dequantize(isa, &quantized.as_ref()).unwrap());
            });
        }
    }
}

/// Quantizes in slices of 64 Ki weights, as a query does.
fn blocks(isa: Isa, weights: Weights<'_>, settings: Settings) -> usize {
    (0..weights.len())
        .step_by(1 << 16)
        .map(|start| {
            let slice = weights.part(start, (1 << 16).min(weights.len() - start)).unwrap();
            black_box(quantize(isa, slice, settings, None).unwrap()).codes.len()
        })
        .sum()
}
