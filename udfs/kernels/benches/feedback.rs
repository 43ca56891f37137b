//! Speed of error feedback: how long a factor takes, and weights that are rounded again in a second.
//!
//!     cargo bench -p arrow-quant-kernels --bench feedback -- [CHANNELS ...]
//!
//! One core, rows in the chunks of a job. Every figure is the median of three runs.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

mod random;

use std::time::Instant;

use arrow_quant_kernels::{
    Bits, BlockType, Dtype, Factor, Fill, GroupSize, Isa, Method, MomentBlock, Scheme, Settings, Weights, feed_back,
    feed_back_blocks, quantize, quantize_blocks,
};

use random::Random;

/// Weights that a query quantizes at once: 64 chunks.
const WEIGHTS: usize = 64 << 16;

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![512, 1024, 2048, 4096] } else { asked };
    println!("| channels | instruction set | factor, s | int4, Mw/s | q4_k, Mw/s | GFMA/s |");
    println!("|---|---|---|---|---|---|");
    for size in sizes {
        for isa in Isa::available() {
            row(isa, size);
        }
    }
}

fn row(isa: Isa, size: usize) {
    let mut random = Random(1);
    // Correlated moments that are known to be positive definite.
    let scale = |channel: usize| 1.0 + (channel % 7) as f32;
    let moment = |a: usize, b: usize| scale(a) * scale(b) * 0.9f32.powi((b - a) as i32);
    let triangle: Vec<f32> = (0..size).flat_map(|a| (a..size).map(move |b| moment(a, b))).collect();
    let block = MomentBlock { size, triangle: &triangle };
    let factor = Factor::new(isa, &[block], 0.01).unwrap();
    let factoring = median(|| drop(Factor::new(isa, &[block], 0.01).unwrap()));
    let rows = (WEIGHTS / size).clamp(16, 4096);
    let bytes: Vec<u8> =
        (0..rows * size).flat_map(|_| ((random.gaussian() + random.laplace()) as f32).to_le_bytes()).collect();
    let weights = Weights::new(Dtype::F32, &bytes, size).unwrap();
    let settings = Settings {
        bits: Bits::Four,
        group_size: GroupSize::try_from(64).unwrap(),
        scheme: Scheme::Affine,
        method: Method::MinMax,
    };
    let mut groups = quantize(isa, weights, settings, None).unwrap();
    let mut blocks = quantize_blocks(isa, weights, BlockType::Q4K, Fill::Mse, None).unwrap();
    let of_groups = median(|| feed_back(isa, &factor, &mut [(weights, &mut groups)], || true).unwrap());
    let of_blocks = median(|| feed_back_blocks(isa, &factor, &mut [(weights, &mut blocks)], || true).unwrap());
    let rate = |seconds: f64| (rows * size) as f64 / seconds / 1e6;
    println!(
        "| {size} | {} | {factoring:.4} | {:.1} | {:.1} | {:.1} |",
        isa.name(),
        rate(of_groups),
        rate(of_blocks),
        rate(of_groups) * size as f64 / 2.0 / 1e3
    );
}

fn median(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..3)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[1]
}
