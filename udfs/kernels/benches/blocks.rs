//! ggml's blocks: speed and quality beside ggml itself, whose prebuilt library is loaded where it is.
//!
//!     GGML_LIBRARY=…/libggml-base.so cargo bench -p arrow-quant-kernels --bench blocks -- [speed | quality [model.safetensors …]]
//!
//! The library is that of the npm package @node-llama-cpp/linux-x64 (`npm pack`), on 64-bit Linux. One core; runs of ours and of
//! ggml's take turns, and the fastest of each counts, in CPU time. Quality is SQNR in dB of F32 weights; the tensors of models are their matrices.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

mod random;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hint::black_box;
use std::time::Instant;

use arrow_quant_kernels::{BlockType, Dtype, Fill, Isa, Weights, quantize_blocks, to_f32, to_f32_into};

use random::Random;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let table = arguments.first().map(String::as_str);
    let ggml = Ggml::load();
    if table != Some("quality") {
        speed(&ggml, arguments.get(1).map_or("", String::as_str));
    }
    if table != Some("speed") {
        quality(&ggml, arguments.get(1..).unwrap_or_default());
    }
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn clock_gettime(clock: c_int, now: *mut i64) -> c_int;
}

type QuantizeChunk = unsafe extern "C" fn(c_int, *const f32, *mut u8, i64, i64, i64, *const f32) -> usize;
type QuantizeRow = unsafe extern "C" fn(*const f32, *mut u8, i64);
type DequantizeRow = unsafe extern "C" fn(*const u8, *mut f32, i64);

/// ggml's library.
struct Ggml {
    handle: *mut c_void,
    quantize_chunk: QuantizeChunk,
}

impl Ggml {
    fn load() -> Self {
        let path = std::env::var("GGML_LIBRARY").expect("GGML_LIBRARY names ggml's library, libggml-base.so");
        let path = CString::new(path).unwrap();
        // SAFETY: the path is a C string; RTLD_NOW is 2; an error's message is a C string that is read at once.
        let handle = unsafe {
            let library = dlopen(path.as_ptr(), 2);
            assert!(!library.is_null(), "{}", CStr::from_ptr(dlerror()).to_string_lossy());
            library
        };
        // SAFETY: that is the signature of the function of this name in ggml.h.
        let quantize_chunk =
            unsafe { std::mem::transmute::<*mut c_void, QuantizeChunk>(symbol(handle, "ggml_quantize_chunk")) };
        Self { handle, quantize_chunk }
    }

    /// Rows of blocks.
    fn quantize(&self, block_type: BlockType, x: &[f32], row: usize, importance: Option<&[f32]>) -> Vec<u8> {
        let mut out = vec![0; x.len() / block_type.length() * block_type.size()];
        assert!(x.len().is_multiple_of(row) && importance.is_none_or(|importance| importance.len() == row));
        let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: the input has all rows, the output their blocks, and the importance, if any, is as long as a row.
        let written = unsafe {
            (self.quantize_chunk)(
                id(block_type),
                x.as_ptr(),
                out.as_mut_ptr(),
                0,
                (x.len() / row) as i64,
                row as i64,
                importance,
            )
        };
        assert_eq!(written, out.len());
        out
    }

    fn quantize_row(&self, block_type: BlockType, x: &[f32], out: &mut [u8]) {
        assert_eq!(x.len() / block_type.length() * block_type.size(), out.len());
        let name = format!("quantize_row_{block_type}_ref");
        // SAFETY: that is the signature of these functions in ggml-quants.h; the output has the row's blocks.
        unsafe {
            let function = std::mem::transmute::<*mut c_void, QuantizeRow>(symbol(self.handle, &name));
            function(x.as_ptr(), out.as_mut_ptr(), x.len() as i64);
        }
    }

    fn dequantize(&self, block_type: BlockType, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(out.len() / block_type.length() * block_type.size(), bytes.len());
        let name = format!("dequantize_row_{}", block_type.name().replace("_k", "_K"));
        // SAFETY: that is the signature of these functions in ggml-quants.h; the output is as long as the blocks say.
        unsafe {
            let function = std::mem::transmute::<*mut c_void, DequantizeRow>(symbol(self.handle, &name));
            function(bytes.as_ptr(), out.as_mut_ptr(), out.len() as i64);
        }
    }
}

/// A function of a library.
///
/// # Safety
/// `library` is a handle from `dlopen`.
unsafe fn symbol(library: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).unwrap();
    // SAFETY: the caller has the handle; the name is a C string.
    let found = unsafe { dlsym(library, name.as_ptr()) };
    assert!(!found.is_null(), "the library has no {}", name.to_string_lossy());
    found
}

/// ggml's number of a type.
fn id(block_type: BlockType) -> c_int {
    match block_type {
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q5_0 => 6,
        BlockType::Q5_1 => 7,
        BlockType::Q8_0 => 8,
        BlockType::Q2K => 10,
        BlockType::Q3K => 11,
        BlockType::Q4K => 12,
        BlockType::Q5K => 13,
        BlockType::Q6K => 14,
        BlockType::Iq4Nl => 20,
        BlockType::Iq4Xs => 23,
        BlockType::Tq1_0 => 34,
        BlockType::Tq2_0 => 35,
        BlockType::Mxfp4 => 39,
        BlockType::Nvfp4 => 40,
        BlockType::Q2_0 => 42,
    }
}

/// The types that a search fills.
fn searched() -> impl Iterator<Item = BlockType> {
    let fixed = [BlockType::Q2_0, BlockType::Tq1_0, BlockType::Tq2_0];
    BlockType::ALL.iter().copied().filter(move |block_type| !fixed.contains(block_type))
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Seconds that this thread has run, so that other processes on the machine count little.
fn thread_seconds() -> f64 {
    let mut now = [0i64; 2];
    // SAFETY: on 64-bit Linux a timespec is two words, seconds and nanoseconds; 3 is CLOCK_THREAD_CPUTIME_ID.
    let status = unsafe { clock_gettime(3, now.as_mut_ptr()) };
    assert_eq!(status, 0);
    now[0] as f64 + now[1] as f64 * 1e-9
}

/// The fastest of some runs of each of two functions, which take turns.
fn race(mut ours: impl FnMut(), mut theirs: impl FnMut()) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 7 || (start.elapsed().as_secs_f64() < 1.0 && rounds < 200) {
        let time = |run: &mut dyn FnMut()| {
            let start = thread_seconds();
            run();
            thread_seconds() - start
        };
        best[0] = best[0].min(time(&mut ours));
        best[1] = best[1].min(time(&mut theirs));
        rounds += 1;
    }
    best
}

fn speed(ggml: &Ggml, wanted: &str) {
    const N: usize = 1 << 20;
    const ROW: usize = 4096;
    let isa = Isa::active().unwrap();
    let mut random = Random(2);
    let x: Vec<f32> = (0..N).map(|_| (0.02 * random.gaussian()) as f32).collect();
    let bytes = bytes_of(&x);
    let weights = Weights::new(Dtype::F32, &bytes, ROW).unwrap();
    let few = N / 8;
    println!("10⁶ weights/s on one core, {isa:?}, F32 in the cache of the last level\n");
    println!("| work | type | ours | ggml | ratio | ggml, importance of one | ratio |\n|---|---|---|---|---|---|---|");
    let print = |work: &str, block_type: BlockType, seconds: [f64; 2], counts: [usize; 2], other: &str| {
        let [ours, theirs] = [0, 1].map(|i| counts[i] as f64 / seconds[i] / 1e6);
        println!("| {work} | {block_type} | {ours:.0} | {theirs:.1} | {:.1} | {other} |", ours / theirs);
    };
    let ones = vec![1.0; ROW];
    let chosen = |work: &str, block_type: BlockType| format!("{work} {block_type}").contains(wanted);
    for block_type in searched().filter(|&block_type| chosen("quantize mse", block_type)) {
        let mut ours = || drop(black_box(quantize_blocks(isa, weights, block_type, Fill::Mse, None).unwrap()));
        let seconds = race(&mut ours, || drop(black_box(ggml.quantize(block_type, &x[..few], ROW, None))));
        let [own, with] = race(&mut ours, || drop(black_box(ggml.quantize(block_type, &x[..few], ROW, Some(&ones)))));
        let [own, with] = [N as f64 / own, few as f64 / with];
        let other = format!("{:.1} | {:.1}", with / 1e6, own / with);
        print("quantize mse", block_type, seconds, [N, few], &other);
    }
    for block_type in [BlockType::Q4_0, BlockType::Q8_0] {
        if !chosen("quantize reference", block_type) {
            continue;
        }
        let mut out = vec![0; N / block_type.length() * block_type.size()];
        let seconds = race(
            || drop(black_box(quantize_blocks(isa, weights, block_type, Fill::Reference, None).unwrap())),
            || ggml.quantize_row(block_type, &x, black_box(&mut out)),
        );
        print("quantize reference", block_type, seconds, [N, N], "|");
    }
    for &block_type in BlockType::ALL {
        if !chosen("dequantize", block_type) {
            continue;
        }
        // The weights stay in the cache of the second level.
        const FEW: usize = 1 << 14;
        let blocks = ggml.quantize(block_type, &x[..FEW], ROW, Some(&[1.0; ROW]));
        let stored = Weights::blocks(block_type, &blocks, ROW).unwrap();
        let (mut ours, mut out) = (vec![0.0; FEW], vec![0.0; FEW]);
        let seconds = race(
            || to_f32_into(isa, stored, black_box(&mut ours)).unwrap(),
            || ggml.dequantize(block_type, &blocks, black_box(&mut out)),
        );
        print("dequantize", block_type, seconds, [FEW, FEW], "|");
    }
    println!();
}

/// SQNR in dB of weights that blocks stand for, errors and weights weighted.
fn sqnr(isa: Isa, block_type: BlockType, bytes: &[u8], x: &[f32], importance: &[f32]) -> f64 {
    let restored = to_f32(isa, Weights::blocks(block_type, bytes, importance.len()).unwrap());
    let (mut signal, mut noise) = (0.0, 0.0);
    for (i, (&a, &b)) in x.iter().zip(&restored).enumerate() {
        let (a, b, w) = (f64::from(a), f64::from(b), f64::from(importance[i % importance.len()]));
        signal += w * a * a;
        noise += w * (a - b) * (a - b);
    }
    10.0 * (signal / noise).log10()
}

fn quality(ggml: &Ggml, models: &[String]) {
    const N: usize = 1 << 19;
    const ROW: usize = 4096;
    let isa = Isa::active().unwrap();
    let mut random = Random(1);
    let gaussian: Vec<f32> = (0..N).map(|_| random.gaussian() as f32).collect();
    let laplace: Vec<f32> = (0..N).map(|_| random.laplace() as f32).collect();
    let importance: Vec<f32> = (0..ROW).map(|_| (1.5 * random.gaussian()).exp() as f32).collect();
    println!("SQNR in dB: ggml's fill, its fill with an importance of one everywhere, our search\n");
    println!("| type | Gaussian | Laplace | Gaussian, weighted by an importance: ggml, ours |\n|---|---|---|---|");
    for block_type in searched() {
        let ones = vec![1.0; ROW];
        let cells = [&gaussian, &laplace].map(|x| {
            let bytes = bytes_of(x);
            let weights = Weights::new(Dtype::F32, &bytes, ROW).unwrap();
            let ours = quantize_blocks(isa, weights, block_type, Fill::Mse, None).unwrap().bytes;
            let each = [ggml.quantize(block_type, x, ROW, None), ggml.quantize(block_type, x, ROW, Some(&ones)), ours];
            each.map(|bytes| format!("{:.2}", sqnr(isa, block_type, &bytes, x, &ones))).join(" / ")
        });
        let bytes = bytes_of(&gaussian);
        let weights = Weights::new(Dtype::F32, &bytes, ROW).unwrap();
        let ours = quantize_blocks(isa, weights, block_type, Fill::Mse, Some(&importance)).unwrap().bytes;
        let theirs = ggml.quantize(block_type, &gaussian, ROW, Some(&importance));
        let weighted = [theirs, ours].map(|b| format!("{:.2}", sqnr(isa, block_type, &b, &gaussian, &importance)));
        println!("| {block_type} | {} | {} | {} |", cells[0], cells[1], weighted.join(" / "));
    }
    for model in models {
        let tensors = matrices(&std::fs::read(model).unwrap());
        println!("\n{model}, {} matrices as rows of 256: gain over ggml's fill in dB, least / mean\n", tensors.len());
        println!("| type | over plain | over ones |\n|---|---|---|");
        for block_type in searched() {
            let mut gains = [(f64::INFINITY, 0.0); 2];
            for x in &tensors {
                let bytes = bytes_of(x);
                let weights = Weights::new(Dtype::F32, &bytes, 256).unwrap();
                let ours = quantize_blocks(isa, weights, block_type, Fill::Mse, None).unwrap().bytes;
                let ones = [1.0; 256];
                let ours = sqnr(isa, block_type, &ours, x, &ones);
                for (gain, importance) in gains.iter_mut().zip([None, Some(&ones[..])]) {
                    let theirs = ggml.quantize(block_type, x, 256, importance);
                    let difference = ours - sqnr(isa, block_type, &theirs, x, &ones);
                    *gain = (gain.0.min(difference), gain.1 + difference / tensors.len() as f64);
                }
            }
            let [plain, ones] = gains.map(|(least, mean)| format!("{least:+.2} / {mean:+.2}"));
            println!("| {block_type} | {plain} | {ones} |");
        }
    }
}

/// The matrices of a safetensors file, each cut to a multiple of 256 weights.
fn matrices(file: &[u8]) -> Vec<Vec<f32>> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + length]).unwrap().replace(' ', "");
    let data = &file[8 + length..];
    let numbers = |text: &str| -> Vec<usize> { text.split(',').filter_map(|number| number.parse().ok()).collect() };
    let mut found = Vec::new();
    for part in header.split("\"dtype\":\"").skip(1) {
        let (dtype, rest) = part.split_once('"').unwrap();
        let between = |name: &str| rest.split_once(name).unwrap().1.split_once(']').unwrap().0;
        let (shape, offsets) = (numbers(between("\"shape\":[")), numbers(between("\"data_offsets\":[")));
        let dtype: Result<Dtype, _> = dtype.parse();
        let (Ok(dtype), [_, _]) = (dtype, shape.as_slice()) else { continue };
        let weights = Weights::one_row(dtype, &data[offsets[0]..offsets[1]]).unwrap();
        let mut x = to_f32(Isa::active().unwrap(), weights);
        x.truncate(x.len() / 256 * 256);
        if x.len() >= 1 << 14 && x.iter().any(|&x| x != 0.0) {
            found.push(x);
        }
    }
    found
}
