//! Checkpoints that other programs quantized, as sources: restored under the names of the original model.

use std::fs;
use std::path::Path;

use arrow_quant_v2::Model;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Tensor, arrow_quant, contains, manifest, names, quantized, refused, run, tensor, text, write_model,
};

fn made(name: &'static str, dtype: &'static str, shape: &[usize], value: impl Fn(usize) -> f64) -> Tensor {
    let elements = shape.iter().product::<usize>();
    Tensor { name, dtype, shape: shape.to_vec(), values: (0..elements).map(value).collect() }
}

/// A directory with weights and a `config.json` that says how they are quantized.
fn source(directory: &Path, name: &str, config: Value, tensors: &[Tensor]) -> std::path::PathBuf {
    let path = directory.join(name);
    write_model(&path.join("model.safetensors"), tensors);
    let config = json!({"model_type": "llama", "quantization_config": config});
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path
}

/// The values of a tensor of a model, which are F32.
#[track_caller]
fn values(model: &Path, name: &str) -> Vec<f32> {
    let model = Model::open(model).unwrap();
    let tensor = model.tensors().iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(tensor.dtype(), "F32");
    let bytes = tensor.data().unwrap();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A matrix of GPTQ, 64 outputs of 256 inputs in two groups.
fn gptq() -> [Tensor; 4] {
    // Every code is 9 and every zero point 8, but for the first word.
    let word = |i: usize| if i == 0 { f64::from(0x1234_5678) } else { f64::from(0x9999_9999_u32 as i32) };
    [
        made("m.qweight", "I32", &[32, 64], word),
        made("m.qzeros", "I32", &[2, 8], |_| f64::from(0x7777_7777)),
        made("m.scales", "F16", &[2, 64], |i| (1 + i) as f64 / 256.0),
        made("m.g_idx", "I32", &[256], |i| (i % 2) as f64),
    ]
}

fn gptq_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq", "desc_act": true})
}

#[test]
fn a_quantized_checkpoint_is_read_as_the_model_that_it_was_made_of() {
    let directory = TempDir::new().unwrap();
    let [codes, rest @ ..] = gptq();
    let model = source(directory.path(), "gptq", gptq_config(), &rest);
    fs::rename(model.join("model.safetensors"), model.join("model-00002-of-00002.safetensors")).unwrap();
    write_model(
        &model.join("model-00001-of-00002.safetensors"),
        &[codes, Tensor::gaussian("head", "BF16", &[64, 64], 1)],
    );
    fs::write(model.join("quantize_config.json"), gptq_config().to_string()).unwrap();

    let found = values(&model, "m.weight");
    let scale = |output: usize, input: usize| (1 + input % 2 * 64 + output) as f32 / 256.0;
    let first = [8, 7, 6, 5, 4, 3, 2, 1];
    for (i, found) in found.into_iter().enumerate() {
        let (output, input) = (i / 256, i % 256);
        let code = if output == 0 && input < 8 { first[input] } else { 9 };
        assert_eq!(found, (code - 8) as f32 * scale(output, input), "{output}, {input}");
    }

    let inspection = run(arrow_quant(&["inspect", text(&model), "--json"])).json();
    contains(inspection["quantized_by"].as_str().unwrap(), &["GPTQ", "'m.qweight'", "restored to F32"]);
    let listed: Vec<_> = inspection["tensors"].as_array().unwrap().iter().map(|t| &t["tensor"]).collect();
    assert_eq!(listed, ["head", "m.weight"]);
    let query = format!("SELECT dtype, shape FROM tensors('{}') WHERE tensor = 'm.weight'", text(&model));
    assert_eq!(
        run(arrow_quant(&["sql", "--format", "json", &query])).json(),
        json!({"dtype": "F32", "shape": [64, 256]})
    );

    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    assert_eq!(tensor(&report, "m.weight")["dtype"], "F32");
    contains(&manifest(&out)["notes"].to_string(), &["quantized with GPTQ", "what its codes stand for"]);
    run(arrow_quant(&["validate", text(&model), text(&out)])).printed();
    // The weights are not those that the configuration told of.
    assert_eq!(names(&out), ["arrow_quant.json", "config.json", "weights"]);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config, json!({"model_type": "llama"}));
    // The same without a mapping of the file.
    let (other, _) = quantized(text(&model), directory.path(), "other", &["--enable-streaming=false"]);
    assert_eq!(manifest(&other)["files"], manifest(&out)["files"]);
}

#[test]
fn weights_have_the_values_that_their_codes_stand_for() {
    let directory = TempDir::new().unwrap();
    let of = |name: &str, config: Value, tensors: &[Tensor]| {
        values(&source(directory.path(), name, config, tensors), "m.weight")
    };
    let fp8 = [
        made("m.weight", "F8_E4M3", &[3, 4], |i| if i % 2 == 0 { f64::from(0x38) } else { f64::from(0xc0) }),
        made("m.weight_scale_inv", "F32", &[2, 2], |i| (1 + i) as f64),
    ];
    let found = of("fp8", json!({"quant_method": "fp8", "weight_block_size": [2, 3]}), &fp8);
    assert_eq!(found, [1.0, -2.0, 1.0, -4.0, 1.0, -2.0, 1.0, -4.0, 3.0, -6.0, 3.0, -8.0]);

    let awq = [
        made("m.qweight", "I32", &[2, 1], |i| f64::from(if i == 0 { 0x7531_6420 } else { 0x1111_1111 })),
        made("m.qzeros", "I32", &[1, 1], |_| f64::from(0x1111_1111)),
        made("m.scales", "F16", &[1, 8], |i| (1 + i) as f64),
    ];
    let found = of("awq", json!({"quant_method": "awq", "bits": 4, "group_size": 2, "version": "gemm"}), &awq);
    let expected: Vec<f32> = (0..8).flat_map(|output: i16| [f32::from((output - 1) * (output + 1)), 0.0]).collect();
    assert_eq!(found, expected);

    let nvfp4 = [
        made("m.weight", "U8", &[1, 8], |i| i as f64 * 16.0),
        made("m.weight_scale", "F8_E4M3", &[1, 1], |_| f64::from(0x40)),
        made("m.weight_scale_2", "F32", &[], |_| 0.5),
        made("m.input_scale", "F32", &[], |_| 3.0),
    ];
    let found = of("nvfp4", json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), &nvfp4);
    assert_eq!(found, [0.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 1.5, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 6.0]);
}

#[test]
fn checkpoints_that_are_not_understood_are_refused_and_can_be_looked_at() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let weight = || made("m.weight", "F8_E4M3", &[128, 128], |i| (i % 100) as f64);
    let config = || json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let lost = source(directory.path(), "lost", config(), &[weight()]);
    let parts = ["lost: tensor 'm.weight': has no 'm.weight_scale_inv' beside it", "get the file again"];
    contains(&refused(text(&lost), &out, &[]), &parts);
    contains(&run(arrow_quant(&["plan", text(&lost)])).error(), &parts);
    let inspection = run(arrow_quant(&["inspect", text(&lost), "--json"])).json();
    assert_eq!(inspection["tensors"][0]["dtype"], "F8_E4M3");
    contains(inspection["quantized_by"].as_str().unwrap(), &["FP8 with scales (config.json has"]);

    let scale = made("m.weight_scale_inv", "F32", &[3, 1], |_| 1.0);
    let torn = source(directory.path(), "torn", config(), &[weight(), scale]);
    contains(
        &refused(text(&torn), &out, &[]),
        &["'m.weight_scale_inv' has the shape [3, 1], expected one for each block"],
    );

    let odd = json!({"quant_method": "gptq", "bits": 5});
    let odd = source(directory.path(), "odd", odd, &gptq());
    contains(&refused(text(&odd), &out, &[]), &["tensor 'm.qweight': bits is 5, allowed: 2, 3, 4 or 8"]);
    // A file without its configuration does not say what its codes are.
    contains(
        &refused(text(&odd.join("model.safetensors")), &out, &[]),
        &["does not say bits", "directory that has it"],
    );
}

/// A GGUF file of one tensor: 2 rows of 32 weights as `Q8_0`.
fn gguf(architecture: &str, name: &str) -> Vec<u8> {
    let word = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    file.extend([word("general.architecture"), 8_u32.to_le_bytes().to_vec(), word(architecture)].concat());
    let heads = word(&format!("{architecture}.attention.head_count"));
    file.extend([heads, 4_u32.to_le_bytes().to_vec(), 1_u32.to_le_bytes().to_vec()].concat());
    file.extend([word(name), 2_u32.to_le_bytes().to_vec(), 32_u64.to_le_bytes().to_vec()].concat());
    file.extend([&2_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u64.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    for row in 0..2_i8 {
        // A scale of 0.5, then the codes.
        file.extend([0x00, 0x38]);
        file.extend((0..32).map(|i| (i * (row + 1)) as u8));
    }
    file
}

#[test]
fn a_gguf_file_is_read_as_the_model_that_it_was_made_of() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("model")).unwrap();
    fs::write(path("model/llama.gguf"), gguf("llama", "blk.0.ffn_up.weight")).unwrap();
    fs::write(path("model/config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let expected: Vec<f32> = (0..64).map(|i| 0.5 * (i % 32 * (i / 32 + 1)) as f32).collect();
    for model in [path("model/llama.gguf"), path("model")] {
        assert_eq!(values(&model, "model.layers.0.mlp.up_proj.weight"), expected);
    }
    let inspection = run(arrow_quant(&["inspect", text(&path("model")), "--json"])).json();
    contains(inspection["quantized_by"].as_str().unwrap(), &["ggml blocks (tensor 'blk.0.ffn_up.weight' is Q8_0)"]);
    let (out, _) = quantized(text(&path("model")), directory.path(), "out", &[]);
    run(arrow_quant(&["validate", text(&path("model")), text(&out)])).printed();

    // Another architecture keeps its names.
    fs::write(path("other.gguf"), gguf("sdxl", "blk.0.ffn_up.weight")).unwrap();
    assert_eq!(values(&path("other.gguf"), "blk.0.ffn_up.weight"), expected);
    fs::write(path("model/second.gguf"), gguf("llama", "blk.0.ffn_up.weight")).unwrap();
    let message = run(arrow_quant(&["inspect", text(&path("model"))])).error();
    contains(&message, &["has several GGUF files", "llama.gguf", "second.gguf", "give one of them"]);
}

#[test]
fn no_damage_to_a_gguf_file_is_more_than_an_error() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("m.gguf");
    let whole = gguf("llama", "blk.0.attn_q.weight");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let message = Model::open(&path).unwrap_err().to_string();
        assert!(message.contains("m.gguf: "), "{message}");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        if let Ok(model) = Model::open(&path) {
            assert!(model.tensors().iter().all(|tensor| tensor.data().is_ok()));
        }
    }
}
