use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::error::QuantError;

/// A directory with `files`, parents included.
pub(crate) fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    directory
}

/// A safetensors file of F32 tensors.
pub(crate) fn weights(tensors: &[(&str, &[i64])]) -> Vec<u8> {
    let mut end = 0;
    let members = tensors.iter().map(|(name, shape)| {
        let begin = end;
        end += 4 * shape.iter().product::<i64>();
        format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    });
    let json = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend((0..end).map(|i| i as u8));
    file
}

fn index(weight_map: &[(&str, &str)]) -> Vec<u8> {
    let members: Vec<_> = weight_map.iter().map(|(tensor, file)| format!(r#""{tensor}":"{file}""#)).collect();
    format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, members.join(",")).into_bytes()
}

fn names(model: &Model) -> Vec<String> {
    model.tensors().iter().map(|t| format!("{}:{}@{}", t.component, t.name, t.file_name())).collect()
}

fn not_found(path: &Path) -> String {
    match Model::open(path) {
        Err(error @ QuantError::ModelNotFound { .. }) => error.to_string(),
        other => panic!("expected a model not found, found {other:?}"),
    }
}

fn metadata(path: &Path) -> String {
    match Model::open(path) {
        Err(error @ QuantError::Metadata { .. }) => error.to_string(),
        other => panic!("expected a metadata error, found {other:?}"),
    }
}

#[track_caller]
fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{message}' does not contain '{part}'");
    }
}

#[test]
fn a_single_file() {
    let dir = directory(&[("m.safetensors", weights(&[("w", &[2, 3]), ("b", &[3])])), ("config.json", vec![])]);
    let model = Model::open(&dir.path().join("m.safetensors")).unwrap();
    assert_eq!(names(&model), [":b@m.safetensors", ":w@m.safetensors"]);
    let w = &model.tensors()[1];
    assert_eq!((w.elements(), w.bytes, w.float_dtype()), (6, 24, Some(Dtype::F32)));
    assert_eq!(w.data().unwrap(), (0..24).collect::<Vec<u8>>());
    assert_eq!(w.read(2..4).unwrap(), (8..16).collect::<Vec<u8>>());
    assert!(model.config_files().unwrap().is_empty());
}

#[test]
fn rows() {
    let cases: &[(&[i64], u64)] = &[
        (&[], 1),
        (&[7], 7),
        (&[1000], 1000),
        (&[4, 32], 32),
        (&[4, 31], 31),
        (&[8, 4, 3, 3], 36),
        (&[8, 4, 64], 64),
        (&[0, 5], 5),
        (&[5, 0], 0),
    ];
    for (shape, expected) in cases {
        let dir = directory(&[("m.safetensors", weights(&[("w", *shape)]))]);
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.tensors()[0].row_length(), *expected, "{shape:?}");
        assert_eq!(model.tensors()[0].elements(), shape.iter().product::<i64>() as u64);
    }
}

#[test]
fn a_sharded_model() {
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let index_name = "model.safetensors.index.json";
    let shards = [(a, weights(&[("z", &[2])])), (b, weights(&[("y", &[2])]))];
    let open = |map: &[(&str, &str)]| {
        let dir = directory(&[shards.as_slice(), &[(index_name, index(map))]].concat());
        (Model::open(dir.path()), dir)
    };
    let message = |map: &[(&str, &str)]| open(map).0.unwrap_err().to_string();

    let (model, _dir) = open(&[("z", a), ("y", b)]);
    assert_eq!(names(&model.unwrap()), [format!(":y@{b}"), format!(":z@{a}")]);

    contains(&message(&[("z", a), ("y", "gone.safetensors")]), &[index_name, "'y'", "`gone.safetensors`", "not there"]);
    contains(&message(&[("z", b), ("y", a)]), &["tensor 'y'", "expected in"]);
    contains(&message(&[("z", a), ("y", b), ("x", b)]), &["tensor 'x'", "is not in", b]);
    contains(&message(&[]), &["weight_map is empty"]);
    // A file that the index does not name is no part of the model.
    let (model, _dir) = open(&[("z", a)]);
    assert_eq!(names(&model.unwrap()), [format!(":z@{a}")]);
}

#[test]
fn a_tensor_that_the_index_does_not_name_is_not_lost() {
    let dir = directory(&[
        ("a.safetensors", weights(&[("w", &[2]), ("lost", &[2])])),
        ("a.safetensors.index.json", index(&[("w", "a.safetensors")])),
    ]);
    contains(&metadata(dir.path()), &["a.safetensors.index.json", "tensor 'lost'", "does not name it"]);
}

#[test]
fn an_index_does_not_lead_out_of_its_directory() {
    let escapes =
        ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..", "", "a.bin", "sub\\\\a.safetensors"];
    for file in escapes {
        let dir = directory(&[
            ("a.safetensors", weights(&[("w", &[2])])),
            ("m/sub/a.safetensors", weights(&[("w", &[2])])),
            ("m/model.safetensors.index.json", index(&[("w", file)])),
        ]);
        contains(&metadata(&dir.path().join("m")), &["tensor 'w'", "expected the name of a .safetensors file"]);
    }
}

#[test]
fn a_broken_index_is_named() {
    for text in ["", "{}", "[]", r#"{"weight_map":[]}"#, r#"{"weight_map":{"w":3}}"#] {
        let dir = directory(&[("model.safetensors.index.json", text.into())]);
        contains(&metadata(dir.path()), &["model.safetensors.index.json: ", "weight_map"]);
    }
    let dir = directory(&[("a.safetensors.index.json", index(&[])), ("b.safetensors.index.json", index(&[]))]);
    contains(&metadata(dir.path()), &["a.safetensors.index.json", "b.safetensors.index.json", "expected one"]);
}

#[test]
fn several_files_without_index() {
    let dir = directory(&[("a.safetensors", weights(&[("x", &[1])])), ("b.safetensors", weights(&[("w", &[1])]))]);
    let model = Model::open(dir.path()).unwrap();
    assert_eq!(names(&model), [":w@b.safetensors", ":x@a.safetensors"]);

    let dir = directory(&[("a.safetensors", weights(&[("w", &[1])])), ("b.safetensors", weights(&[("w", &[1])]))]);
    contains(&metadata(dir.path()), &["tensor 'w'", "`a.safetensors`", "`b.safetensors`"]);
}

#[test]
fn variants_are_left_out() {
    let w = || weights(&[("w", &[1])]);
    let dir =
        directory(&[("model.fp16.safetensors", w()), ("model.safetensors", w()), ("model.non_ema.safetensors", w())]);
    assert_eq!(names(&Model::open(dir.path()).unwrap()), [":w@model.safetensors"]);

    let dir = directory(&[("model.fp16.safetensors", w())]);
    assert_eq!(names(&Model::open(dir.path()).unwrap()), [":w@model.fp16.safetensors"]);

    let dir = directory(&[("llama-3.safetensors", w()), ("llama-3.1.safetensors", weights(&[("v", &[1])]))]);
    assert_eq!(Model::open(dir.path()).unwrap().tensors().len(), 2);
}

const PIPELINE: &str = r#"{"_class_name":"P","unet":["diffusers","U"],"vae":["diffusers","V"],"scheduler":["diffusers","S"],
    "safety_checker":[null,null],"tokenizer":["transformers","T"],"force":true}"#;

#[test]
fn a_pipeline() {
    let dir = directory(&[
        ("model_index.json", PIPELINE.into()),
        ("whole.safetensors", weights(&[("unet.w", &[1])])),
        ("unet/diffusion_pytorch_model.safetensors", weights(&[("w", &[1]), ("a", &[1])])),
        ("unet/config.json", vec![]),
        ("vae/a.safetensors", weights(&[("w", &[1])])),
        ("vae/a.safetensors.index.json", index(&[("w", "./a.safetensors")])),
        ("vae/pytorch_model.bin", vec![]),
        ("scheduler/config.json", vec![]),
        ("safety_checker/model.safetensors", weights(&[("w", &[1])])),
        ("quantized/arrow_quant.json", vec![]),
        (".cache/x.json", vec![]),
        ("README.md", vec![]),
    ]);
    let model = Model::open(dir.path()).unwrap();
    let unet = "unet/diffusion_pytorch_model.safetensors";
    assert_eq!(names(&model), [format!("unet:a@{unet}"), format!("unet:w@{unet}"), "vae:w@vae/a.safetensors".into()]);
    let expected = ["model_index.json", "scheduler/config.json", "unet/config.json"].map(PathBuf::from);
    assert_eq!(model.config_files().unwrap(), expected);
    assert_eq!(model.files().map(|(name, _)| name).collect::<Vec<_>>(), [unet, "vae/a.safetensors"]);
}

#[test]
fn a_pipeline_that_cannot_be_read() {
    let dir = directory(&[("model_index.json", PIPELINE.into()), ("scheduler/config.json", vec![])]);
    contains(&not_found(dir.path()), &["no component", "model_index.json"]);

    let dir = directory(&[("model_index.json", r#"{"../x":["a","b"]}"#.into())]);
    contains(&metadata(dir.path()), &["model_index.json", "'../x'"]);

    let dir = directory(&[("model_index.json", "[".into())]);
    contains(&metadata(dir.path()), &["model_index.json: ", "expected a JSON object of components"]);

    // Half a pipeline would be worse than none.
    let dir = directory(&[
        ("model_index.json", PIPELINE.into()),
        ("unet/a.safetensors", weights(&[("w", &[1])])),
        ("vae/diffusion_pytorch_model.bin", vec![]),
    ]);
    contains(&not_found(dir.path()), &["vae", "pickle", "convert them to safetensors"]);
}

#[test]
fn no_model() {
    let dir = directory(&[
        ("empty/README.md", vec![]),
        ("pickle/pytorch_model.bin", vec![]),
        ("quantized/arrow_quant.json", vec![]),
        ("m.ckpt", vec![]),
        ("m.gguf", vec![]),
        ("m.onnx", vec![]),
        ("m.safetensors", vec![]),
    ]);
    let path = |name: &str| dir.path().join(name);
    contains(&not_found(&path("gone")), &["no model at `", "gone`: no such file or directory; give"]);
    contains(&not_found(&path("m.gguf/x")), &["no such file or directory"]);
    contains(&not_found(&path("empty")), &["no weights in `", "empty`: looked for *.safetensors"]);
    contains(&not_found(&path("pickle")), &["`pytorch_model.bin`", "can run code", "convert them to safetensors"]);
    contains(&not_found(&path("quantized")), &["is a quantized model already"]);
    contains(&not_found(&path("m.ckpt")), &["m.ckpt` is a pickle checkpoint", "convert it to safetensors"]);
    contains(&not_found(&path("m.onnx")), &["m.onnx`", "allowed: a .safetensors or .gguf file"]);
    contains(&metadata(&path("m.gguf")), &["m.gguf: file is truncated"]);
    contains(&metadata(&path("m.safetensors")), &["m.safetensors: file has 0 bytes"]);
}

#[test]
fn config_files_of_a_plain_model() {
    let dir = directory(&[
        ("model.safetensors", weights(&[("w", &[1])])),
        ("model.fp16.safetensors", weights(&[("w", &[1])])),
        ("pytorch_model.bin.index.json", vec![]),
        ("m.gguf", vec![]),
        ("calibration.parquet", vec![]),
        ("tokenizer.json", vec![]),
        ("config.json", vec![]),
        (".gitattributes", vec![]),
        ("runs/events.json", vec![]),
    ]);
    let model = Model::open(dir.path()).unwrap();
    assert_eq!(model.config_files().unwrap(), ["config.json", "tokenizer.json"].map(PathBuf::from));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_round_and_round() {
    use std::os::unix::fs::symlink;

    let dir = directory(&[
        ("blobs/unet", weights(&[("w", &[1])])),
        ("m/model_index.json", PIPELINE.into()),
        ("m/unet/config.json", vec![]),
    ]);
    let model = dir.path().join("m");
    symlink("../../blobs/unet", model.join("unet/a.safetensors")).unwrap();
    symlink("..", model.join("unet/up")).unwrap();
    symlink("unet", model.join("vae")).unwrap();
    symlink("m", dir.path().join("link")).unwrap();
    let model = Model::open(&dir.path().join("link")).unwrap();
    assert_eq!(names(&model), ["unet:w@unet/a.safetensors", "vae:w@vae/a.safetensors"]);
    let expected = ["model_index.json", "unet/config.json", "vae/config.json"].map(PathBuf::from);
    assert_eq!(model.config_files().unwrap(), expected);
}

#[test]
fn the_fingerprint_changes_with_the_files() {
    let dir = directory(&[("a.safetensors", weights(&[("w", &[1])]))]);
    let path = dir.path().join("a.safetensors");
    let fingerprint = |path: &Path| Model::open(path).unwrap().fingerprint().unwrap();
    let first = fingerprint(dir.path());
    assert_eq!(first.len(), 64);
    assert_eq!(first, fingerprint(dir.path()));
    assert_eq!(first, fingerprint(&path));

    let file = fs::File::options().write(true).open(&path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified + std::time::Duration::from_secs(1)).unwrap();
    assert_ne!(first, fingerprint(dir.path()));

    fs::write(&path, weights(&[("v", &[1])])).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_ne!(first, fingerprint(dir.path()));
}
