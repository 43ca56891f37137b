//! What is taken for a model: quantized checkpoints, directories with more or less than one model, and tensors that are
//! not weights.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Tensor, arrow_quant, contains, manifest, names, quantized, refused, run, tensor, text, write_model,
};

fn matrix(name: &'static str) -> Tensor {
    Tensor::gaussian(name, "F32", &[64, 128], 1)
}

fn codes(name: &'static str, dtype: &'static str, shape: &[usize]) -> Tensor {
    let elements = shape.iter().product::<usize>();
    Tensor { name, dtype, shape: shape.to_vec(), values: (0..elements).map(|i| (i % 250) as f64).collect() }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What `inspect` says of a model.
#[track_caller]
fn inspected(model: &Path, arguments: &[&str]) -> Value {
    run(arrow_quant(&[["inspect", text(model), "--json"].as_slice(), arguments].concat())).json()
}

#[track_caller]
fn notes(report: &Value) -> String {
    report["notes"].to_string()
}

#[test]
fn a_scheme_that_is_not_read_is_refused_by_name_and_can_be_looked_at() {
    let directory = TempDir::new().unwrap();
    let hqq = directory.path().join("hqq");
    let tensors = [
        codes("m.W_q", "U8", &[16, 64]),
        Tensor::gaussian("m.scale", "F16", &[1, 64], 1),
        Tensor::gaussian("m.zero", "F16", &[1, 64], 2),
        matrix("lm_head.weight"),
    ];
    write_model(&hqq.join("model.safetensors"), &tensors);
    write(&hqq.join("config.json"), r#"{"quantization_config": {"quant_method": "hqq", "bits": 4}}"#);
    let message = refused(text(&hqq), &directory.path().join("out"), &[]);
    let parts = [
        "is quantized already: HQQ",
        "config.json has quantization_config with quant_method hqq",
        "'m.W_q' is U8",
        "get the original weights",
    ];
    contains(&message, &parts);
    let planned = run(arrow_quant(&["plan", text(&hqq)])).error();
    contains(&planned, &["is quantized already: HQQ"]);
    // A file alone, without its configuration, is known by its tensors.
    let message = refused(text(&hqq.join("model.safetensors")), &directory.path().join("out"), &[]);
    contains(&message, &["is quantized already: HQQ"]);

    let inspection = inspected(&hqq, &[]);
    contains(inspection["quantized_by"].as_str().unwrap(), &["HQQ"]);
    let query = format!("SELECT count(*) AS tensors FROM tensors('{}')", text(&hqq));
    assert_eq!(run(arrow_quant(&["sql", "--format", "json", &query])).json(), json!({"tensors": 4}));
}

#[test]
fn a_quantized_component_is_refused_and_a_claim_of_plain_weights_is_noted() {
    let directory = TempDir::new().unwrap();
    let pipeline = directory.path().join("pipeline");
    write(&pipeline.join("model_index.json"), r#"{"unet":["d","U"],"transformer":["d","T"]}"#);
    write_model(&pipeline.join("unet/m.safetensors"), &[matrix("w")]);
    let scaled = [codes("w.weight", "U8", &[64, 128]), Tensor::gaussian("w.scales", "F32", &[1], 1)];
    write_model(&pipeline.join("transformer/m.safetensors"), &scaled);
    contains(&refused(text(&pipeline), &directory.path().join("out"), &[]), &["integers with scales", "'w.scales'"]);

    let restored = directory.path().join("restored");
    write_model(&restored.join("model.safetensors"), &[matrix("w")]);
    write(&restored.join("config.json"), r#"{"quantization_config": {"quant_method": "fp8"}}"#);
    let (_, report) = quantized(text(&restored), directory.path(), "restored-4", &[]);
    contains(&notes(&report), &["said to be quantized with FP8", "taken as they are"]);
}

#[test]
fn models_with_eight_bit_floats_and_scales_of_their_own_are_quantized() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    // Without 127, which is no number.
    let cast = (0..64 * 128).map(|i| (i % 120) as f64).collect();
    let tensors = [
        Tensor { name: "cast.weight", dtype: "F8_E4M3", shape: vec![64, 128], values: cast },
        codes("cast.scale", "F8_E4M3", &[64]),
        Tensor::gaussian("ls.scale", "F32", &[64], 2),
        Tensor::gaussian("quantizer.codebook", "F32", &[64, 128], 3),
        codes("attn.bias", "U8", &[1, 1, 8, 8]),
        matrix("w"),
    ];
    write_model(&model, &tensors);
    let (_, report) = quantized(text(&model), directory.path(), "out", &[]);
    assert_eq!(tensor(&report, "quantizer.codebook")["bits"], 4);
    // FP8 without scales is a cast.
    assert_eq!(tensor(&report, "cast.weight")["bits"], 4);
    assert_eq!(tensor(&report, "cast.weight")["dtype"], "F32");
}

#[test]
fn what_is_read_and_left_out_is_told() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("model");
    write_model(&model.join("model.safetensors"), &[matrix("w")]);
    write_model(&model.join("model.fp16.safetensors"), &[Tensor::gaussian("w", "F16", &[64, 128], 1)]);
    write_model(&model.join("consolidated.safetensors"), &[matrix("layers.w")]);
    let adapter = ["q.lora_A.weight", "q.lora_B.weight"].map(matrix);
    write_model(&model.join("style.safetensors"), &adapter);
    write(&model.join("model.safetensors.aria2"), "");
    let inspection = inspected(&model, &[]);
    assert_eq!(inspection["files"], json!(["model.safetensors"]));
    let expected = [
        "`consolidated.safetensors`: the same weights",
        "`model.fp16.safetensors`: a variant",
        "`style.safetensors`: an adapter",
        "`model.safetensors.aria2`: a download that has not ended",
    ];
    contains(&inspection["left_out"].to_string(), &expected);
    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    contains(&notes(&report), &expected);
    contains(&manifest(&out)["notes"].to_string(), &expected);
    assert_eq!(manifest(&out)["source"]["files"], json!(["model.safetensors"]));
}

#[test]
fn a_variant_is_read_if_it_is_asked_for() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("model");
    write_model(&model.join("model.safetensors"), &[matrix("w")]);
    write_model(&model.join("model.fp16.safetensors"), &[Tensor::gaussian("w", "F16", &[64, 128], 1)]);
    let (out, report) = quantized(text(&model), directory.path(), "out", &["--variant", "fp16"]);
    assert_eq!(tensor(&report, "w")["dtype"], "F16");
    run(arrow_quant(&["validate", text(&model), text(&out), "--json"])).json();
    assert_eq!(inspected(&model, &["--variant", "fp16"])["tensors"][0]["dtype"], "F16");
    let query = format!("SELECT dtype FROM tensors('{}', 'fp16')", text(&model));
    assert_eq!(run(arrow_quant(&["sql", "--format", "json", &query])).json(), json!({"dtype": "F16"}));
    let message = refused(text(&model), &directory.path().join("other"), &["--variant", "bf16"]);
    contains(&message, &["--variant is 'bf16', allowed for `", "model`: fp16"]);

    fs::rename(model.join("model.safetensors"), model.join("model.bf16.safetensors")).unwrap();
    let message = refused(text(&model), &directory.path().join("other"), &[]);
    contains(&message, &["has its weights as bf16, fp16", "choose one with --variant"]);
}

#[test]
fn an_incomplete_model_is_refused_and_what_is_missing_named() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    write_model(&path("gap/model-00001-of-00003.safetensors"), &[matrix("a")]);
    write_model(&path("gap/model-00003-of-00003.safetensors"), &[matrix("b")]);
    contains(&refused(text(&path("gap")), &path("out"), &[]), &["`model-00002-of-00003.safetensors` is missing"]);

    write(&path("pipeline/model_index.json"), r#"{"unet":["d","U"],"vae":["d","V"]}"#);
    write_model(&path("pipeline/unet/m.safetensors"), &[matrix("a")]);
    contains(
        &refused(text(&path("pipeline")), &path("out"), &[]),
        &["model_index.json names `vae`", "get the missing"],
    );

    write_model(&path("below/transformer/m.safetensors"), &[matrix("a")]);
    contains(&refused(text(&path("below")), &path("out"), &[]), &["below/transformer`: give one of these directories"]);
    write_model(&path("models--a--b/snapshots/12ab/m.safetensors"), &[matrix("a")]);
    contains(&refused(text(&path("models--a--b")), &path("out"), &[]), &["give the directory of one version", "12ab`"]);
    contains(&refused("some-org/some-model", &path("out"), &[]), &["hf download some-org/some-model"]);
}

#[test]
fn files_of_other_endings_are_read() {
    let directory = TempDir::new().unwrap();
    for name in ["flux.sft", "FLUX.SAFETENSORS"] {
        write_model(&directory.path().join(name), &[matrix("w")]);
        let (out, _) = quantized(text(&directory.path().join(name)), directory.path(), &format!("{name}-4"), &[]);
        assert_eq!(manifest(&out)["source"]["name"], name.split_once('.').unwrap().0);
    }
}

#[test]
fn a_path_with_a_line_end_is_read_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("two\nlines");
    write_model(&path.join("model.safetensors"), &[matrix("w")]);
    let (out, _) = quantized(text(&path), &path, "out", &[]);
    run(arrow_quant(&["validate", text(&path), text(&out)])).printed();
    for table in ["quantized", "weights"] {
        let query = format!("SELECT count(*) AS chunks FROM {table}('{}')", text(&out));
        assert_eq!(run(arrow_quant(&["sql", "--format", "json", &query])).json(), json!({"chunks": 1}));
    }
}

#[test]
fn only_configuration_is_copied() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("model");
    write_model(&model.join("model.safetensors"), &[matrix("w")]);
    let kept = ["LICENSE.md", "chat_template.jinja", "config.json", "merges.txt", "tokenizer.model"];
    let others = [
        "README.md",
        "model.safetensors.bak",
        "config.json.old",
        "model.safetensors.part",
        "x.crdownload",
        "card.png",
        "pytorch_model.bin",
        "model.gguf",
        "model.onnx",
        "config.json.tmp",
    ];
    for name in kept.iter().chain(&others) {
        write(&model.join(name), "{}");
    }
    let (out, _) = quantized(text(&model), directory.path(), "out", &[]);
    let expected = [&["LICENSE.md", "arrow_quant.json"], &kept[1..], &["weights"]].concat();
    assert_eq!(names(&out), expected);
}

#[test]
fn masks_and_weights_below_f32_are_kept_with_a_reason() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    let mut mask = Tensor { name: "text.attn_mask", dtype: "F32", shape: vec![77, 77], values: vec![0.0; 77 * 77] };
    for row in 0..77 {
        mask.values[row * 77 + row + 1..(row + 1) * 77].fill(f64::NEG_INFINITY);
    }
    let mut unnamed = Tensor { name: "text.buffer", shape: mask.shape.clone(), values: mask.values.clone(), ..mask };
    unnamed.values[0] = f64::NEG_INFINITY;
    let mut tiny = Tensor::gaussian("tiny", "F64", &[64, 128], 2);
    tiny.values.iter_mut().for_each(|value| *value *= 1e-200);
    let mut largest = Tensor { name: "least.buffer", shape: mask.shape.clone(), values: mask.values.clone(), ..mask };
    largest.values.iter_mut().filter(|value| **value != 0.0).for_each(|value| *value = f64::from(f32::MIN));
    write_model(&model, &[matrix("w"), mask, unnamed, tiny, largest]);
    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    for name in ["text.attn_mask", "text.buffer", "least.buffer"] {
        assert_eq!(tensor(&report, name)["reason"]["kind"], "mask", "{name}");
    }
    assert_eq!(tensor(&report, "tiny")["reason"]["kind"], "below_f32");
    run(arrow_quant(&["validate", text(&model), text(&out)])).printed();
}

#[test]
fn zeros_and_a_target_that_is_no_smaller_are_noted() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    let zeros = Tensor { name: "gone", dtype: "F32", shape: vec![64, 128], values: vec![0.0; 64 * 128] };
    write_model(&model, &[matrix("w"), zeros]);
    let (_, report) = quantized(text(&model), directory.path(), "out", &["--target-model-size-mb", "5"]);
    contains(&notes(&report), &["1 tensor is all zeros: gone", "target_model_size_mb asks for 5.000000 MB"]);
    let empty = directory.path().join("empty.safetensors");
    write_model(&empty, &[Tensor { name: "none", dtype: "F32", shape: vec![0, 64], values: vec![] }]);
    let message = refused(text(&empty), &directory.path().join("none"), &["--target-bpw", "4"]);
    contains(&message, &["--target-bpw is set, but the model has no weights"]);
}
