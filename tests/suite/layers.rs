//! Layers that the configuration names, and those that are known to be sensitive: which widths they get.

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{DIGITS, Tensor, contains, quantized, refused, tensor, tensors, text, write_model};

/// `--layer-bit-widths` for each of these.
fn widths<'a>(widths: &[&'a str]) -> Vec<&'a str> {
    widths.iter().flat_map(|width| ["--layer-bit-widths", width]).collect()
}

/// The report on the example model, quantized with some arguments.
#[track_caller]
fn report(arguments: &[&str]) -> Value {
    quantized(DIGITS, TempDir::new().unwrap().path(), "out", arguments).1
}

/// Matrices and why they are as they are, if that is for a reason of their own: `name bits because`.
fn decided(report: &Value) -> Vec<String> {
    let shown = |t: &Value| format!("{} {} {}", t["tensor"], t["bits"], t["because"]).replace('"', "");
    let is_plain = |t: &Value| t["because"] == "bit_width" || t["because"] == "1-D";
    tensors(report).iter().filter(|t| !is_plain(t)).map(shown).collect()
}

#[test]
fn widths_by_tensor_module_and_pattern() {
    let report = report(&widths(&["blocks.0.fc1.weight=8", "time_fc1=2", "^blocks.[23].qkv.weight$=16"]));
    assert_eq!(
        decided(&report),
        [
            "blocks.0.fc1.weight 8 layer_bit_widths 'blocks.0.fc1.weight'",
            "blocks.2.qkv.weight null layer_bit_widths '^blocks.[23].qkv.weight$'",
            "blocks.3.qkv.weight null layer_bit_widths '^blocks.[23].qkv.weight$'",
            "time_fc1.weight 2 layer_bit_widths 'time_fc1'",
        ]
    );
    assert_eq!(tensor(&report, "blocks.2.qkv.weight")["bytes"], 384 * 128 * 2, "kept at BF16");
    assert_eq!(report["settings"]["layer_bit_widths"]["time_fc1"], 2);
}

#[test]
fn the_longest_name_goes_first_and_names_go_before_patterns() {
    let report = report(&widths(&["blocks.0=8", "blocks.0.fc1=2", "weight$=8"]));
    let bits = |name: &str| tensor(&report, name)["bits"].as_u64().unwrap();
    assert_eq!(["blocks.0.fc1.weight", "blocks.0.fc2.weight", "blocks.1.fc1.weight"].map(bits), [2, 8, 8]);
    assert_eq!(bits("pos_embed"), 4, "nothing is said of it");
}

#[test]
fn patterns_that_contradict_each_other() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let message = refused(DIGITS, &out, &widths(&["0.fc1.weight$=8", "fc[12].weight=2"]));
    contains(
        &message,
        &["'0.fc1.weight$' is 8", "'fc[12].weight' 2", "both match blocks.0.fc1.weight", "name it, or narrow one"],
    );
    // Naming it, as the message advises.
    let advised = widths(&["0.fc1.weight$=8", "fc[12].weight=2", "blocks.0.fc1.weight=8"]);
    let bits = |name: &str, report: &Value| tensor(report, name)["bits"].as_u64().unwrap();
    let advised = report(&advised);
    assert_eq!((bits("blocks.0.fc1.weight", &advised), bits("blocks.1.fc1.weight", &advised)), (8, 2));
    let agreed = report(&widths(&["0.fc1.weight$=8", "fc[12].weight=8"]));
    assert_eq!(bits("blocks.0.fc1.weight", &agreed), 8, "two that say the same are none");
}

/// Biases are kept in any case, so that patterns say nothing that could be contradicted.
#[test]
fn patterns_that_contradict_each_other_where_nothing_is_quantized() {
    let report = report(&widths(&["^blocks.0.fc1=8", "bias$=16"]));
    assert_eq!(decided(&report), ["blocks.0.fc1.weight 8 layer_bit_widths '^blocks.0.fc1'"]);
}

#[test]
fn names_that_are_no_layers() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let message = |arguments: &[&str]| refused(DIGITS, &out, arguments);
    let unknown = message(&widths(&["block.0.fc1.weight=8"]));
    contains(
        &unknown,
        &["--layer-bit-widths has 'block.0.fc1.weight', which is not a tensor", "did you mean 'blocks.0.fc1.weight'?"],
    );
    let unknown = message(&["--sensitive-layer-names", "pos_embed,label_embd.weight"]);
    contains(&unknown, &["--sensitive-layer-names has 'label_embd.weight'", "did you mean 'label_embed.weight'?"]);
    contains(&message(&widths(&["zzz=8"])), &["--layer-bit-widths has 'zzz'", "see arrow-quant inspect"]);
    contains(
        &message(&widths(&["pos_embed=7"])),
        &["--layer-bit-widths of 'pos_embed' is 7, allowed: 2, 3, 4, 5, 6, 8, a block type such as q6_k, or 16"],
    );
    contains(&message(&["--sensitive-layer-patterns", "("]), &["--sensitive-layer-patterns is '('"]);
    let contradiction = message(&[&widths(&["pos_embed=8"])[..], &["--enable-mixed-precision=false"]].concat());
    contains(&contradiction, &["--layer-bit-widths is set but --enable-mixed-precision is false"]);
}

#[test]
fn sensitive_layers_by_name_and_pattern() {
    let names = ["--sensitive-layer-names", "blocks.0,pos_embed", "--sensitive-layer-patterns", "[12].proj"];
    let report = report(&[&names[..], &widths(&["blocks.0.proj=8"])].concat());
    assert_eq!(
        decided(&report),
        [
            "blocks.0.fc1.weight null sensitive_layer_names 'blocks.0'",
            "blocks.0.fc2.weight null sensitive_layer_names 'blocks.0'",
            "blocks.0.modulation.weight null sensitive_layer_names 'blocks.0'",
            "blocks.0.proj.weight 8 layer_bit_widths 'blocks.0.proj'",
            "blocks.0.qkv.weight null sensitive_layer_names 'blocks.0'",
            "blocks.1.proj.weight null sensitive_layer_patterns '[12].proj'",
            "blocks.2.proj.weight null sensitive_layer_patterns '[12].proj'",
            "pos_embed null sensitive_layer_names 'pos_embed'",
        ]
    );
}

#[test]
fn what_is_sensitive_in_the_architecture() {
    let report = report(&[&["--skip-sensitive-layers"][..], &widths(&["time_fc1=8"])].concat());
    assert_eq!(report["modality"], "image");
    let notes: Vec<_> = report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert!(notes.contains(&"sensitive layers as in DiT"), "{notes:?}");
    let kept = tensors(&report).iter().filter(|t| t["because"].as_str().unwrap().starts_with("sensitive in DiT: "));
    let kept: Vec<_> = kept.map(|t| t["tensor"].as_str().unwrap()).collect();
    assert_eq!(
        kept,
        [
            "blocks.0.modulation.weight",
            "final_modulation.weight",
            "label_embed.weight",
            "patch_embed.weight",
            "pos_embed",
            "proj_out.weight",
            "time_fc2.weight",
        ]
    );
    assert_eq!(tensor(&report, "time_fc1.weight")["bits"], 8, "what is said of it alone goes first");
    assert_eq!(tensor(&report, "blocks.1.modulation.weight")["bits"], 4);
}

#[test]
fn a_model_that_nothing_is_known_of() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    write_model(&model, &[Tensor::gaussian("alpha.weight", "F32", &[64, 64], 1)]);
    let message = refused(text(&model), &directory.path().join("out"), &["--skip-sensitive-layers"]);
    contains(
        &message,
        &["m.safetensors", "what the model makes cannot be told", "give --modality as text, code", "config.json"],
    );
    let named = ["--skip-sensitive-layers", "--modality", "audio"];
    let (_, report) = quantized(text(&model), directory.path(), "named", &named);
    assert_eq!((&report["modality"], &report["tensors"][0]["bits"]), (&"audio".into(), &4.into()));
    // Nothing depends on it.
    let (_, report) = quantized(text(&model), directory.path(), "plain", &[]);
    assert_eq!((&report["modality"], &report["tensors"][0]["bits"]), (&Value::Null, &4.into()));
}
