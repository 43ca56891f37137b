//! What the tests share: weights and models made for a test, the example model, and the command.

use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use arrow::datatypes::{ArrowPrimitiveType, Float16Type};
use arrow_quant_v2::FIELDS;
use serde_json::{Map, Value, json};

/// The example model.
pub(crate) const DIGITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/digits-dit");

type F16 = <Float16Type as ArrowPrimitiveType>::Native;

/// A tensor to write.
pub(crate) struct Tensor {
    pub name: &'static str,
    /// `F64`, `F32`, `F16`, `BF16`, `I64`, `I32`, or `U8` and `F8_E4M3`, whose values are bytes.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    /// Rounded to the dtype when they are written.
    pub values: Vec<f64>,
}

impl Tensor {
    /// A tensor of Gaussian weights that follow from the seed.
    pub(crate) fn gaussian(name: &'static str, dtype: &'static str, shape: &[usize], seed: u64) -> Self {
        let values = gaussian(shape.iter().product(), seed);
        Self { name, dtype, shape: shape.to_vec(), values }
    }

    /// A tensor of 0, 1, 2 …
    pub(crate) fn counting(name: &'static str, dtype: &'static str, shape: &[usize]) -> Self {
        let elements: usize = shape.iter().product();
        Self { name, dtype, shape: shape.to_vec(), values: (0..elements).map(|i| i as f64).collect() }
    }

    /// Its elements as safetensors stores them.
    fn bytes(&self) -> Vec<u8> {
        let element = |x: &f64| match self.dtype {
            "F32" => (*x as f32).to_le_bytes().to_vec(),
            "F16" => F16::from_f64(*x).to_le_bytes().to_vec(),
            "BF16" => bf16(*x as f32).to_le_bytes().to_vec(),
            "F64" => x.to_le_bytes().to_vec(),
            "I64" => (*x as i64).to_le_bytes().to_vec(),
            "I32" => (*x as i32).to_le_bytes().to_vec(),
            "U8" | "F8_E4M3" => vec![*x as u8],
            other => panic!("no tensors of dtype {other} are made here"),
        };
        self.values.iter().flat_map(element).collect()
    }
}

/// The upper half of an f32, rounded to the nearest, ties to even.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Gaussian numbers (Box-Muller over SplitMix64) that follow from the seed.
pub(crate) fn gaussian(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // From 2^-54 on, never 0.
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON / 4.0
    };
    (0..count)
        .map(|_| {
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            radius * angle.cos()
        })
        .collect()
}

/// A safetensors file of some tensors.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{}", tensor.name);
        let begin = data.len();
        data.extend(tensor.bytes());
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(tensor.name.to_string(), entry);
    }
    [file_head(header), data].concat()
}

/// Writes a safetensors file of some tensors, and the directories above it.
pub(crate) fn write_model(path: &Path, tensors: &[Tensor]) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    fs::write(path, safetensors(tensors)).unwrap();
}

/// Writes a model of one large tensor, `w`, whose rows of 4,096 Gaussian weights are all the same.
pub(crate) fn write_large_model(path: &Path, dtype: &'static str, rows: usize) {
    let row = Tensor::gaussian("w", dtype, &[4096], 11).bytes();
    let entry = json!({"dtype": dtype, "shape": [rows, 4096], "data_offsets": [0, rows * row.len()]});
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(&file_head(Map::from_iter([("w".to_string(), entry)]))).unwrap();
    for _ in 0..rows {
        file.write_all(&row).unwrap();
    }
    file.flush().unwrap();
}

/// Writes a copy of the example model, `directory/digits`, in which one tensor has other weights.
pub(crate) fn write_digits_with(directory: &Path, tensor: &str, values: &[f64]) -> PathBuf {
    let model = directory.join("digits");
    fs::create_dir(&model).unwrap();
    for (name, mut bytes) in files(Path::new(DIGITS)) {
        if name.ends_with(".safetensors") {
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
            let offset = |end: usize| data + header[tensor]["data_offsets"][end].as_u64().unwrap() as usize;
            let weights: Vec<u8> = values.iter().flat_map(|x| bf16(*x as f32).to_le_bytes()).collect();
            bytes[offset(0)..offset(1)].copy_from_slice(&weights);
        }
        fs::write(model.join(name), bytes).unwrap();
    }
    model
}

/// What comes before the data.
fn file_head(header: Map<String, Value>) -> Vec<u8> {
    let json = Value::Object(header).to_string();
    [(json.len() as u64).to_le_bytes().as_slice(), json.as_bytes()].concat()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The command with some arguments, and nothing of the environment that would change what it does.
pub(crate) fn arrow_quant(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arrow-quant"));
    // Paths of the project are relative to its root.
    command
        .args(arguments)
        .env_remove("ARROW_QUANT_ISA")
        .env_remove("COLUMNS")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for variable in FIELDS.iter().filter_map(|field| field.variable) {
        command.env_remove(variable);
    }
    command
}

/// Quantizes a model into `directory/name` with more arguments, and gives the report.
#[track_caller]
pub(crate) fn quantized(model: &str, directory: &Path, name: &str, arguments: &[&str]) -> (PathBuf, Value) {
    let out = directory.join(name);
    let report = run(arrow_quant(&[["quantize", model, text(&out), "--json"].as_slice(), arguments].concat())).json();
    (out, report)
}

/// The message of a `quantize` that must fail, after which the directory holds what it held before.
#[track_caller]
pub(crate) fn refused(model: &str, out: &Path, arguments: &[&str]) -> String {
    refused_with(1, model, out, arguments)
}

/// The same with another status.
#[track_caller]
pub(crate) fn refused_with(status: i32, model: &str, out: &Path, arguments: &[&str]) -> String {
    let parent = out.parent().unwrap();
    let before = parent.is_dir().then(|| names(parent));
    let outcome = run(arrow_quant(&[["quantize", model, text(out)].as_slice(), arguments].concat()));
    let message = outcome.error_with(status);
    assert_eq!(parent.is_dir().then(|| names(parent)), before, "{message}");
    message
}

/// The tensors of a report.
#[track_caller]
pub(crate) fn tensors(report: &Value) -> &[Value] {
    report["tensors"].as_array().unwrap()
}

/// What a report says of a tensor.
#[track_caller]
pub(crate) fn tensor<'a>(report: &'a Value, name: &str) -> &'a Value {
    tensors(report).iter().find(|tensor| tensor["tensor"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// What a quantized model says of itself.
pub(crate) fn manifest(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("arrow_quant.json")).unwrap()).unwrap()
}

/// What a finished command leaves.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(mut command: impl BorrowMut<Command>) -> Outcome {
    let command: &mut Command = command.borrow_mut();
    let output = command.output().unwrap();
    Outcome {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Outcome {
    /// What it printed, if it succeeded without a word on standard error.
    #[track_caller]
    pub(crate) fn printed(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// The JSON that it printed.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.printed()).unwrap()
    }

    /// The message of its error: one line that starts with `error: `, and status 1.
    #[track_caller]
    pub(crate) fn error(self) -> String {
        self.error_with(1)
    }

    /// The same with another status.
    #[track_caller]
    pub(crate) fn error_with(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{self:?}");
        let message = self.stderr.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
        let message = message.unwrap_or_else(|| panic!("{self:?}"));
        assert!(!message.contains('\n'), "{message}");
        message.to_string()
    }
}

/// Asserts that a message has all these parts.
#[track_caller]
pub(crate) fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{message}' does not contain '{part}'");
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file under a directory by its relative path.
pub(crate) fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in names(directory) {
        let path = directory.join(&name);
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

/// Writes a model of tall tensors, each the rows of a small one so many times over, and the directories above it.
#[cfg(unix)]
pub(crate) fn write_tall_model(path: &Path, tensors: &[(Tensor, usize)]) {
    let (mut header, mut end) = (Map::new(), 0);
    for (tensor, times) in tensors {
        let (begin, rows) = (end, tensor.shape[0] * times);
        end += tensor.bytes().len() * times;
        let entry = json!({"dtype": tensor.dtype, "shape": [rows, tensor.shape[1]], "data_offsets": [begin, end]});
        header.insert(tensor.name.to_string(), entry);
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(&file_head(header)).unwrap();
    for (tensor, times) in tensors {
        let rows = tensor.bytes();
        for _ in 0..*times {
            file.write_all(&rows).unwrap();
        }
    }
    file.flush().unwrap();
}
