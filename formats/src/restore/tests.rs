mod comfy;
mod ggml;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use serde_json::{Map, Value, json};

use super::*;
use crate::StoredType::{self, *};
use crate::gguf::{Header, Tensor, TensorType};

/// Stored tensors in memory.
#[derive(Default)]
struct Memory(Vec<(String, StoredType, Vec<i64>, Vec<u8>)>);

impl Parts for Memory {
    type Bytes = Vec<u8>;
    type Error = Infallible;

    fn read(&self, part: usize, ranges: &[Range<u64>]) -> std::result::Result<Vec<Vec<u8>>, Infallible> {
        let bytes = &self.0[part].3;
        Ok(ranges.iter().map(|range| bytes[range.start as usize..range.end as usize].to_vec()).collect())
    }
}

impl Memory {
    fn with(mut self, name: &str, stored: StoredType, shape: &[i64], bytes: impl IntoIterator<Item = u8>) -> Self {
        let bytes: Vec<u8> = bytes.into_iter().collect();
        assert_eq!(stored.bytes(crate::elements(shape)), Some(bytes.len() as u64), "{name}");
        self.0.push((name.to_string(), stored, shape.to_vec(), bytes));
        self
    }

    fn floats(self, name: &str, shape: &[i64], values: &[f32]) -> Self {
        self.with(name, F32, shape, values.iter().flat_map(|value| value.to_le_bytes()))
    }

    fn words(self, name: &str, shape: &[i64], words: &[u32]) -> Self {
        self.with(name, I32, shape, words.iter().flat_map(|word| word.to_le_bytes()))
    }

    fn plan(
        &self,
        scheme: Option<QuantizationScheme>,
        config: &Value,
        metadata: &BTreeMap<String, String>,
    ) -> std::result::Result<Option<Restoration>, String> {
        let tensors: Vec<_> =
            self.0.iter().map(|(name, stored, shape, _)| SchemeTensor { name, stored: *stored, shape }).collect();
        let config: Option<&Map<String, Value>> = config.as_object();
        let stored = Stored { scheme: scheme.as_ref(), config, metadata, tensors: &tensors };
        plan(&stored, self).map_err(|error| match error {
            RestoreError::Tensor(problem) => problem.to_string(),
            RestoreError::Read(never) => match never {},
        })
    }

    /// The only tensor that is restored, and what it holds: the same whichever range of it is asked for.
    #[track_caller]
    fn restored(&self, scheme: QuantizationScheme, config: Value) -> (String, Vec<i64>, Vec<f32>) {
        let restoration = self.plan(Some(scheme), &config, &BTreeMap::new()).unwrap().unwrap();
        assert!(restoration.kept.is_empty(), "{:?}", restoration.kept);
        let [Restored { name, shape, recipe, .. }] = restoration.tensors.as_slice() else {
            panic!("{:?}", restoration.tensors)
        };
        (name.clone(), shape.clone(), values(recipe, shape, self))
    }

    #[track_caller]
    fn refused(&self, scheme: QuantizationScheme, config: Value, parts: &[&str]) {
        let message = self.plan(Some(scheme), &config, &BTreeMap::new()).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "'{message}' does not contain '{part}'");
        }
    }
}

/// All elements, after every range of them was looked at.
#[track_caller]
fn values(recipe: &Recipe, shape: &[i64], parts: &Memory) -> Vec<f32> {
    let elements = crate::elements(shape);
    let Ok(all) = recipe.restore(parts, 0..elements);
    assert_eq!(all.len() as u64, elements);
    let step = (elements / 24).max(1) as usize;
    for start in (0..=elements).step_by(step) {
        for end in (start..=elements).step_by(step) {
            let Ok(some) = recipe.restore(parts, start..end);
            assert_eq!(some, all[start as usize..end as usize], "{start}..{end}");
        }
    }
    all
}

/// Codes of a few bits each, packed into words from the lowest bits on.
fn packed(codes: &[u32], bits: u32) -> Vec<u32> {
    let mut words = vec![0; (codes.len() * bits as usize).div_ceil(32)];
    for (i, &code) in codes.iter().enumerate() {
        let bit = i * bits as usize;
        let both = u64::from(code) << (bit % 32);
        words[bit / 32] |= both as u32;
        if both >> 32 != 0 {
            words[bit / 32 + 1] |= (both >> 32) as u32;
        }
    }
    words
}

/// Codes that look like none in particular.
fn codes(count: usize, bits: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i * 13 + 5) % (1 << bits)).collect()
}

/// The rows of columns.
fn turned(values: &[u32], columns: usize) -> Vec<u32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// Words of packed rows, one row after the other.
fn packed_rows(codes: &[u32], columns: usize, bits: u32) -> Vec<u32> {
    codes.chunks(columns).flat_map(|row| packed(row, bits)).collect()
}

const ONE: u8 = 0x38;
const TWO: u8 = 0x40;

#[test]
fn fp8_is_multiplied_by_the_scale_of_its_block_row_or_tensor() {
    let bytes = [ONE, TWO, ONE, TWO, ONE, ONE, TWO, ONE, TWO, ONE, ONE, TWO, ONE, TWO, ONE];
    let weight = || Memory::default().with("m.weight", F8E4M3, &[3, 5], bytes);
    let element = |i: usize| if bytes[i] == TWO { 2.0 } else { 1.0 };
    let expected = |scale: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..15).map(|i| element(i) * scale(i / 5, i % 5)).collect()
    };
    let blocks = weight().floats("m.weight_scale_inv", &[2, 3], &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
    let (name, shape, found) = blocks.restored(QuantizationScheme::ScaledFp8, json!({"weight_block_size": [2, 2]}));
    assert_eq!((name.as_str(), shape.as_slice()), ("m.weight", &[3, 5][..]));
    assert_eq!(found, expected(&|row, column| [1.0, 3.0, 5.0, 7.0, 9.0, 11.0][row / 2 * 3 + column / 2]));
    for (scale, shape) in [("weight_scale", &[3, 1][..]), ("weight_scale", &[3]), ("scale_weight", &[3, 1])] {
        let rows = weight().floats(&format!("m.{scale}"), shape, &[0.5, 3.0, 7.0]);
        let rows = rows.floats("m.input_scale", &[], &[9.0]);
        let found = rows.restored(QuantizationScheme::CompressedTensors, Value::Null).2;
        assert_eq!(found, expected(&|row, _| [0.5, 3.0, 7.0][row]));
    }
    let whole = weight().floats("m.weight_scale", &[], &[0.1]);
    assert_eq!(whole.restored(QuantizationScheme::ModelOpt, Value::Null).2, expected(&|_, _| 0.1));
}

#[test]
fn fp8_is_refused_without_the_scales_that_it_should_have() {
    let weight = || Memory::default().with("m.weight", F8E4M3, &[2, 2], [ONE; 4]);
    let config = || json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    weight().refused(QuantizationScheme::ScaledFp8, config(), &["'m.weight'", "'m.weight_scale_inv'", "get the file"]);
    let config = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
    weight().refused(QuantizationScheme::CompressedTensors, config, &["'m.weight_scale'"]);
    let wrong = weight().floats("m.weight_scale_inv", &[3, 1], &[1.0; 3]);
    let parts = ["'m.weight_scale_inv' has the shape [3, 1]", "matrix of 2 by 2"];
    wrong.refused(QuantizationScheme::ScaledFp8, Value::Null, &parts);
    let unknown = weight().floats("m.scale", &[], &[2.0]);
    unknown.refused(QuantizationScheme::ScaledFp8, Value::Null, &["'m.weight'", "'m.scale' beside it"]);
    let sizes = weight().floats("m.weight_scale_inv", &[], &[1.0]);
    sizes.refused(QuantizationScheme::ScaledFp8, json!({"weight_block_size": [0, 1]}), &["weight_block_size is [0,1]"]);
}

#[test]
fn fp8_without_scales_is_plain() {
    let memory = Memory::default()
        .with("a", F8E4M3, &[1, 2], [ONE, 0xc0])
        .with("b", F8E5M2, &[1, 2], [0x3c, 0x42])
        .with("list", F8E4M3, &[2], [ONE, 0xc0]);
    let restoration = memory.plan(None, &Value::Null, &BTreeMap::new()).unwrap().unwrap();
    let found: Vec<_> =
        restoration.tensors.iter().map(|tensor| values(&tensor.recipe, &tensor.shape, &memory)).collect();
    assert_eq!(found, [[1.0, -2.0], [1.0, 3.0]], "a list stays as it is");
    let floats = Memory::default().floats("a", &[1], &[1.0]);
    assert!(floats.plan(None, &Value::Null, &BTreeMap::new()).unwrap().is_none());
}

/// A matrix of GPTQ: 32 inputs, 32 outputs, two groups.
fn gptq(bits: u32, order: &[u32]) -> (Memory, Vec<u32>, Vec<u32>) {
    let (codes, zeros) = (codes(32 * 32, bits), codes(2 * 32, bits));
    let words = turned(&packed_rows(&codes, 32, bits), bits as usize);
    let memory = Memory::default()
        .words("m.qweight", &[i64::from(bits), 32], &words)
        .words("m.qzeros", &[2, i64::from(bits)], &packed_rows(&zeros, 32, bits))
        .floats("m.scales", &[2, 32], &(0..64).map(|i| i as f32 / 8.0).collect::<Vec<_>>());
    let memory = if order.is_empty() { memory } else { memory.words("m.g_idx", &[32], order) };
    (memory, codes, zeros)
}

#[test]
fn gptq_is_restored_whatever_the_bits_and_the_order() {
    let shuffled: Vec<u32> = (0..32).map(|i| i % 2).collect();
    for bits in [2, 3, 4, 8] {
        for (order, less, format) in [(&[][..], 1, "gptq"), (&shuffled, 1, "gptq"), (&[], 0, "gptq_v2")] {
            let (memory, codes, zeros) = gptq(bits, order);
            let config = json!({"bits": bits, "checkpoint_format": format});
            let (name, shape, found) = memory.restored(QuantizationScheme::Gptq, config);
            assert_eq!((name.as_str(), shape.as_slice()), ("m.weight", &[32, 32][..]));
            let expected: Vec<f32> = (0..32 * 32)
                .map(|i| {
                    let (output, input) = (i / 32, i % 32);
                    let group = order.get(input).map_or(input / 16, |group| *group as usize);
                    let zero = (zeros[group * 32 + output] + less) % (1 << bits);
                    (codes[i] as f32 - zero as f32) * ((group * 32 + output) as f32 / 8.0)
                })
                .collect();
            assert_eq!(found, expected, "{bits} bits, {format}");
        }
    }
}

#[test]
fn gptq_that_is_not_understood_is_refused() {
    let (memory, ..) = gptq(4, &[]);
    let refused = |memory: &Memory, config, parts: &[&str]| memory.refused(QuantizationScheme::Gptq, config, parts);
    refused(&memory, json!({"bits": 5}), &["'m.qweight'", "bits is 5, allowed: 2, 3, 4 or 8"]);
    refused(&memory, json!({"quant_method": "gptq"}), &["does not say bits"]);
    refused(&memory, json!({"bits": 4, "checkpoint_format": "marlin"}), &["checkpoint_format is marlin"]);
    refused(&memory, json!({"bits": 2}), &["'m.qzeros' has the shape [2, 4], expected [2, 2]"]);
    let (beyond, ..) = gptq(4, &[2; 32]);
    refused(&beyond, json!({"bits": 4}), &["'m.g_idx' has the index 2 of a group, expected 0 to 1"]);
    let alone = Memory::default().words("m.qweight", &[4, 32], &[0; 128]);
    refused(&alone, json!({"bits": 4}), &["'m.scales' beside it"]);
}

#[test]
fn awq_is_restored_in_its_order() {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let mix = |codes: &[u32]| -> Vec<u32> {
        codes.chunks(8).flat_map(|eight| packed(&ORDER.map(|at| eight[at]), 4)).collect()
    };
    // By inputs and outputs.
    let (codes, zeros) = (codes(4 * 16, 4), codes(2 * 16, 4));
    let memory = Memory::default()
        .words("m.qweight", &[4, 2], &mix(&codes))
        .words("m.qzeros", &[2, 2], &mix(&zeros))
        .floats("m.scales", &[2, 16], &(0..32).map(|i| i as f32 / 4.0).collect::<Vec<_>>());
    let (name, shape, found) = memory.restored(QuantizationScheme::Awq, json!({"bits": 4, "version": "gemm"}));
    assert_eq!((name.as_str(), shape.as_slice()), ("m.weight", &[16, 4][..]));
    for (i, found) in found.into_iter().enumerate() {
        let (output, input) = (i / 4, i % 4);
        let group = input / 2 * 16 + output;
        let code = codes[input * 16 + output] as f32 - zeros[group] as f32;
        assert_eq!(found, code * (group as f32 / 4.0), "{output}, {input}");
    }
    memory.refused(QuantizationScheme::Awq, json!({"bits": 4, "version": "gemv"}), &["version is gemv, allowed: gemm"]);
    memory.refused(QuantizationScheme::Awq, json!({"bits": 3}), &["bits is 3, allowed: 4"]);
}

#[test]
fn integers_of_compressed_tensors_have_zero_points_or_not() {
    let codes = codes(3 * 32, 4);
    let scales: Vec<f32> = (1..7).map(|i| i as f32 / 2.0).collect();
    let packed_weight = || {
        Memory::default()
            .words("m.weight_packed", &[3, 4], &packed_rows(&codes, 32, 4))
            .floats("m.weight_scale", &[3, 2], &scales)
            .with("m.weight_shape", I64, &[2], [3, 32].iter().flat_map(|size: &i64| size.to_le_bytes()))
    };
    let config = json!({"format": "pack-quantized"});
    let (name, shape, found) = packed_weight().restored(QuantizationScheme::CompressedTensors, config.clone());
    assert_eq!((name.as_str(), shape.as_slice()), ("m.weight", &[3, 32][..]));
    let expected = |zero: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..96)
            .map(|i| (i / 32, i % 32 / 16, i))
            .map(|(r, g, i)| (codes[i] as f32 - zero(r, g)) * scales[r * 2 + g])
            .collect()
    };
    assert_eq!(found, expected(&|_, _| 8.0));
    // Three zero points down the rows of each of two groups, in a word each.
    let zeros = packed_weight().words("m.weight_zero_point", &[1, 2], &[0x321, 0xfed]);
    let found = zeros.restored(QuantizationScheme::CompressedTensors, config.clone()).2;
    assert_eq!(found, expected(&|row, group| [[1.0, 2.0, 3.0], [13.0, 14.0, 15.0]][group][row]));

    let bytes = Memory::default()
        .with("m.weight", I8, &[2, 2], [1, 0xff, 127, 0x80])
        .floats("m.weight_scale", &[2, 1], &[0.5, 2.0])
        .with("m.weight_zero_point", I8, &[2, 1], [0, 1]);
    let found = bytes.restored(QuantizationScheme::CompressedTensors, config).2;
    assert_eq!(found, [0.5, -0.5, 252.0, -258.0]);
    let parts = ["format is marlin-24, allowed: pack-quantized"];
    packed_weight().refused(QuantizationScheme::CompressedTensors, json!({"format": "marlin-24"}), &parts);
}

#[test]
fn codebooks_of_bitsandbytes_cross_rows() {
    let map: Vec<f32> = (0..16).map(|i| i as f32 / 4.0 - 2.0).collect();
    let state = |json: Value| json.to_string().into_bytes();
    let weight = |json: Value| {
        let state = state(json);
        Memory::default()
            .with("m.weight", U8, &[4, 1], [0x01, 0x23, 0xef, 0xa0])
            .floats("m.weight.quant_map", &[16], &map)
            .with("m.weight.quant_state.bitsandbytes__nf4", U8, &[state.len() as i64], state)
    };
    let plain = json!({"blocksize": 4, "shape": [7, 1], "dtype": "bfloat16"});
    let memory = weight(plain).floats("m.weight.absmax", &[2], &[2.0, 8.0]);
    let (name, shape, found) = memory.restored(QuantizationScheme::Bitsandbytes4, Value::Null);
    assert_eq!((name.as_str(), shape.as_slice()), ("m.weight", &[7, 1][..]));
    let expected: Vec<f32> =
        [0, 1, 2, 3, 14, 15, 10].iter().enumerate().map(|(i, code)| map[*code] * [2.0, 8.0][i / 4]).collect();
    assert_eq!(found, expected);

    let twice = json!({"blocksize": 2, "shape": [2, 4], "nested_blocksize": 2, "nested_offset": 0.25});
    let nested: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let memory = weight(twice)
        .with("m.weight.absmax", U8, &[4], [1, 2, 3, 4])
        .floats("m.weight.nested_quant_map", &[256], &nested)
        .floats("m.weight.nested_absmax", &[2], &[0.5, 2.0]);
    let found = memory.restored(QuantizationScheme::Bitsandbytes4, Value::Null).2;
    let scale = [0.75, 1.25, 6.25, 8.25];
    let expected: Vec<f32> =
        [0, 1, 2, 3, 14, 15, 10, 0].iter().enumerate().map(|(i, code)| map[*code] * scale[i / 2]).collect();
    assert_eq!(found, expected);

    let wrong = weight(json!({"blocksize": 4, "shape": [9, 1]})).floats("m.weight.absmax", &[2], &[2.0, 8.0]);
    wrong.refused(QuantizationScheme::Bitsandbytes4, Value::Null, &["'m.weight' has the shape [4, 1]", "[9, 1]"]);
    let broken = Memory::default().with("m.weight", U8, &[1, 1], [0]).with(
        "m.weight.quant_state.bitsandbytes__nf4",
        U8,
        &[1],
        *b"{",
    );
    broken.refused(QuantizationScheme::Bitsandbytes4, Value::Null, &["bitsandbytes__nf4' is not understood"]);
}

#[test]
fn bytes_of_bitsandbytes_are_127ths_of_the_largest_of_a_row() {
    let memory = Memory::default()
        .with("m.weight", I8, &[2, 2], [127, 0x81, 1, 0])
        .floats("m.SCB", &[2], &[3.0, 254.0])
        .with("m.weight_format", U8, &[], [0]);
    let found = memory.restored(QuantizationScheme::Bitsandbytes8, Value::Null).2;
    assert_eq!(found, [127.0 * (3.0 / 127.0), -127.0 * (3.0 / 127.0), 2.0, 0.0]);
    let tiles = Memory::default().with("m.weight", I8, &[1, 1], [1]).floats("m.SCB", &[1], &[3.0]).with(
        "m.weight_format",
        U8,
        &[],
        [2],
    );
    tiles.refused(QuantizationScheme::Bitsandbytes8, Value::Null, &["weight_format"]);
}

#[test]
fn mlx_has_a_width_for_each_module() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let codes = codes(2 * 64, bits);
        let words = packed_rows(&codes, 64, bits);
        let memory = Memory::default()
            .with("m.weight", U32, &[2, words.len() as i64 / 2], words.iter().flat_map(|word| word.to_le_bytes()))
            .floats("m.scales", &[2, 2], &[0.5, 1.0, 2.0, 4.0])
            .floats("m.biases", &[2, 2], &[-1.0, -2.0, -3.0, -4.0]);
        let config = json!({"bits": 4, "group_size": 64, "m": {"bits": bits, "group_size": 32}});
        let (_, shape, found) = memory.restored(QuantizationScheme::Mlx, config);
        assert_eq!(shape, [2, 64]);
        let expected: Vec<f32> = (0..128)
            .map(|i| codes[i] as f32 * [0.5, 1.0, 2.0, 4.0][i / 32] + [-1.0, -2.0, -3.0, -4.0][i / 32])
            .collect();
        assert_eq!(found, expected, "{bits}");
        memory.refused(QuantizationScheme::Mlx, json!({"bits": 7}), &["bits is 7, allowed: 2, 3, 4, 5, 6 or 8"]);
        memory.refused(QuantizationScheme::Mlx, json!({"bits": bits, "group_size": 16}), &["groups of 16"]);
    }
}

#[test]
fn sdnq_packs_without_regard_to_rows() {
    let (scales, lows) = ([0.5, 1.0, 2.0, 4.0], [-1.0, -2.0, -3.0, -4.0]);
    for (dtype, bits, shape) in [("uint2", 2, &[4][..]), ("uint4", 4, &[8]), ("uint8", 8, &[2, 2, 4])] {
        let codes = codes(16, bits);
        let bytes: Vec<u8> = packed(&codes, bits).iter().flat_map(|word| word.to_le_bytes()).collect();
        let memory = Memory::default()
            .with("m.weight", U8, shape, bytes)
            .floats("m.scale", &[2, 2, 1], &scales)
            .floats("m.zero_point", &[2, 2, 1], &lows);
        let config = json!({"weights_dtype": "int8", "modules_dtype_dict": {dtype: ["m.weight"]}});
        let (_, of_weights, found) = memory.restored(QuantizationScheme::Sdnq, config);
        assert_eq!(of_weights, [2, 8]);
        let expected: Vec<f32> = (0..16).map(|i| codes[i] as f32 * scales[i / 4] + lows[i / 4]).collect();
        assert_eq!(found, expected, "{dtype}");
    }
    let signed =
        Memory::default().with("m.weight", U8, &[4], [0x80, 0xf7, 0x01, 0x92]).floats("m.scale", &[2, 1], &[1.0, 2.0]);
    let found = signed.restored(QuantizationScheme::Sdnq, json!({"weights_dtype": "int4"})).2;
    assert_eq!(found, [-8.0, 0.0, -1.0, 7.0, -14.0, -16.0, -12.0, 2.0]);
    signed.refused(QuantizationScheme::Sdnq, json!({"weights_dtype": "uint4"}), &["'m.zero_point' beside it"]);
    signed.refused(
        QuantizationScheme::Sdnq,
        json!({"weights_dtype": "int5"}),
        &["weights_dtype is int5, allowed: uint8"],
    );
}

#[test]
fn what_is_left_of_another_layout_is_refused() {
    let memory = Memory::default()
        .with("a.weight", I8, &[1, 1], [127])
        .floats("a.SCB", &[1], &[1.0])
        .words("b.qweight", &[1, 8], &[0; 8])
        .floats("b.scales", &[1, 8], &[0.0; 8]);
    memory.refused(QuantizationScheme::Bitsandbytes8, Value::Null, &["'b.qweight'", "not of a layout that is read"]);
    let hqq = Memory::default().with("m.W_q", U8, &[1], [0]);
    assert!(hqq.plan(Some(QuantizationScheme::Hqq), &Value::Null, &BTreeMap::new()).unwrap().is_none());
}
