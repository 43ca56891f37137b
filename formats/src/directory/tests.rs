use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use super::*;

/// A directory in memory: its files by path.
struct InMemory(BTreeMap<PathBuf, Vec<u8>>);

impl InMemory {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| (path.into(), text.as_bytes().to_vec())).collect())
    }
}

impl Directory for InMemory {
    type Error = Infallible;

    fn list(&self, directory: &Path) -> std::result::Result<Vec<Entry>, Infallible> {
        let mut entries: Vec<Entry> = Vec::new();
        for path in self.0.keys().filter_map(|path| path.strip_prefix(directory).ok()) {
            let Some(first) = path.components().next() else { continue };
            let inner = directory.join(first);
            let is_file = path.components().count() == 1;
            let kind = if is_file { EntryKind::File } else { EntryKind::Directory(inner.clone()) };
            if entries.last().is_none_or(|last| last.path != inner) {
                entries.push(Entry { path: inner, kind });
            }
        }
        Ok(entries)
    }

    fn identity(&self) -> std::result::Result<PathBuf, Infallible> {
        Ok(PathBuf::new())
    }

    fn read(&self, file: &Path) -> std::result::Result<Vec<u8>, Infallible> {
        Ok(self.0[file].clone())
    }
}

fn found(files: &[(&str, &str)], variant: Option<&str>) -> Layout {
    layout(&InMemory::new(files), variant).unwrap()
}

fn files(layout: &Layout) -> Vec<&str> {
    layout.components.iter().flat_map(|component| &component.files).map(|file| file.to_str().unwrap()).collect()
}

fn left_out(layout: &Layout) -> Vec<String> {
    layout.left_out.iter().map(ToString::to_string).collect()
}

fn error(files: &[(&str, &str)], variant: Option<&str>) -> DirectoryError<Infallible> {
    layout(&InMemory::new(files), variant).unwrap_err()
}

/// An index of tensors that are called like their files.
fn index(files: &[&str]) -> String {
    let members: Vec<String> = files.iter().map(|file| format!(r#""{file}":"{file}""#)).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, members.join(","))
}

#[test]
fn components_are_found_without_a_disk() {
    let plain = InMemory::new(&[("model.fp16.safetensors", ""), ("model.safetensors", ""), ("config.json", "{}")]);
    assert_eq!(files(&layout(&plain, None).unwrap()), ["model.safetensors"]);
    assert_eq!(config_files(&plain, false).unwrap(), [PathBuf::from("config.json")]);

    let index = r#"{"unet":["diffusers","U"],"vae":["diffusers","V"]}"#;
    let pipeline = InMemory::new(&[
        ("model_index.json", index),
        ("unet/a.safetensors", ""),
        ("unet/config.json", "{}"),
        ("vae/config.json", "{}"),
        ("vae/a.safetensors", ""),
        ("README.md", ""),
        ("vae/config.json.bak", ""),
    ]);
    let found = layout(&pipeline, None).unwrap();
    assert_eq!((found.components.len(), found.components[0].name.as_str()), (2, "unet"));
    assert_eq!(files(&found), ["unet/a.safetensors", "vae/a.safetensors"]);
    let expected = ["model_index.json", "unet/config.json", "vae/config.json"].map(PathBuf::from);
    assert_eq!(config_files(&pipeline, true).unwrap(), expected);
}

#[test]
fn what_is_missing_is_data() {
    let missing = |files: &[(&str, &str)]| match error(files, None) {
        DirectoryError::Missing(missing) => missing,
        other => panic!("expected weights to be missing, found {other:?}"),
    };
    assert_eq!(missing(&[("README.md", "")]), Missing::NoWeights);
    assert_eq!(missing(&[("arrow_quant.json", "{}")]), Missing::AlreadyQuantized);
    assert_eq!(missing(&[("model_index.json", "{}")]), Missing::NoComponent);
    let pickles = Missing::PicklesOnly { directory: PathBuf::new(), example: "m.bin".to_string() };
    assert_eq!(missing(&[("m.bin", "")]), pickles);
    assert_eq!(check_file(Path::new("m.ckpt")), Err(Missing::Pickle));
    assert_eq!(check_file(Path::new("m.SFT")), Ok(()));
    let unfinished = missing(&[("model.safetensors.incomplete", ""), ("config.json", "")]);
    assert!(matches!(unfinished, Missing::Unfinished { .. }), "{unfinished:?}");
    let below = missing(&[("modular_model_index.json", "{}"), ("transformer/m.safetensors", ""), ("a/b/m.sft", "")]);
    assert_eq!(below, Missing::InDirectories { directories: vec!["a/b".into(), "transformer".into()] });
    let cache = [("refs/main", "bb\n"), ("snapshots/aa/m.safetensors", ""), ("snapshots/bb/m.safetensors", "")];
    assert_eq!(
        missing(&cache),
        Missing::CacheRepository { versions: vec!["snapshots/bb".into(), "snapshots/aa".into()] }
    );
    assert_eq!(not_there(Path::new("org/name-7B")), Missing::HubId);
    assert_eq!(not_there(Path::new("hf://org/name")), Missing::Address);
    for path in ["name", "./org/name", "/org/name", "a/b/c", "org/model.safetensors"] {
        assert_eq!(not_there(Path::new(path)), Missing::Nothing, "{path}");
    }
}

#[test]
fn of_weights_that_are_there_more_than_once_one_copy_is_read() {
    let both = [("model.fp16.safetensors", ""), ("model.safetensors", "")];
    assert_eq!(files(&found(&both, None)), ["model.safetensors"]);
    assert_eq!(files(&found(&both, Some("fp16"))), ["model.fp16.safetensors"]);
    assert_eq!(
        left_out(&found(&both, None)),
        ["left out: `model.fp16.safetensors`: a variant of the weights that are read"]
    );
    assert!(matches!(error(&both, Some("bf16")), DirectoryError::Variant { there, .. } if there == ["fp16"]));

    let no_plain = [("model.fp16.safetensors", ""), ("model.bf16.safetensors", "")];
    assert!(matches!(error(&no_plain, None), DirectoryError::Variant { asked: None, .. }));
    assert_eq!(files(&found(&no_plain, Some("bf16"))), ["model.bf16.safetensors"]);
    // Pieces with names of their own are no variants.
    assert_eq!(files(&found(&[("t5xxl.fp16.safetensors", ""), ("ae.safetensors", "")], None)).len(), 2);
    assert_eq!(files(&found(&[("part.a.safetensors", ""), ("part.b.safetensors", "")], None)).len(), 2);

    let mistral = [("consolidated.safetensors", ""), ("model.safetensors", ""), ("adapter_model.safetensors", "")];
    let layout = found(&mistral, None);
    assert_eq!((files(&layout), layout.left_out.len()), (vec!["model.safetensors"], 2));
    assert_eq!(files(&found(&mistral[..1], None)), ["consolidated.safetensors"]);
    assert_eq!(files(&found(&mistral[2..], None)), ["adapter_model.safetensors"]);

    let whole = [("model.safetensors", ""), ("model-00001-of-00002.safetensors", "")];
    assert_eq!(files(&found(&whole, None)), ["model.safetensors"]);
    assert_eq!(files(&found(&[("A.SAFETENSORS", ""), ("b.sft", "")], None)), ["A.SAFETENSORS", "b.sft"]);
}

#[test]
fn indexes_of_variants_are_read() {
    let (a, b) = ("model.bf16-00001-of-00002.safetensors", "model.bf16-00002-of-00002.safetensors");
    let listed = index(&[a, b]);
    let name = "model.safetensors.index.bf16.json";
    let layout = found(&[(a, ""), (b, ""), (name, &listed), ("model.safetensors", "")], Some("bf16"));
    assert_eq!((files(&layout), layout.left_out.len()), (vec![a, b], 1));
    let without = error(&[(a, ""), (name, &listed)], None);
    assert!(matches!(without, DirectoryError::File { problem: FileProblem::ShardMissing { .. }, .. }), "{without:?}");
    // The index of the other copy came with the configuration.
    let plain = index(&["model-00001-of-00001.safetensors"]);
    let layout = found(&[(a, ""), (b, ""), (name, &listed), ("model.safetensors.index.json", &plain)], None);
    assert_eq!(files(&layout), [a, b]);
}

#[test]
fn an_index_says_what_it_leaves_out_and_may_be_stale() {
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let (name, listed) = ("model.safetensors.index.json", index(&[a, b]));
    let layout = found(
        &[(a, ""), (b, ""), (name, &listed), ("head.safetensors", ""), ("pytorch_model.bin", ""), ("m.gguf", "")],
        None,
    );
    assert_eq!(
        left_out(&layout),
        [
            "left out: `head.safetensors`: weights that `model.safetensors.index.json` does not name",
            "left out: `m.gguf`: GGUF beside safetensors; give the file to read it",
            "left out: `pytorch_model.bin`: weights in a format that is not read"
        ]
    );
    let stale = found(&[("model.safetensors", ""), (name, &listed)], None);
    assert_eq!((files(&stale), stale.components[0].index.is_none()), (vec!["model.safetensors"], true));
    assert!(left_out(&stale)[0].contains("probably stale"), "{:?}", stale.left_out);
    let half = error(&[("model.safetensors", ""), (a, ""), (name, &listed)], None);
    let DirectoryError::File { problem, .. } = half else { panic!("{half:?}") };
    assert!(problem.to_string().contains("if the index is stale, give `model.safetensors`"), "{problem}");

    let marked = format!("\u{feff}{}", index(&["a.safetensors"]).replace(r#":"a"#, r#":"./a"#));
    assert_eq!(files(&found(&[("a.safetensors", ""), (name, &marked)], None)), ["a.safetensors"]);
    let consolidated = index(&["consolidated-00001-of-00001.safetensors"]);
    let two = [
        (a, ""),
        (b, ""),
        (name, listed.as_str()),
        ("consolidated-00001-of-00001.safetensors", ""),
        ("consolidated.safetensors.index.json", consolidated.as_str()),
    ];
    assert_eq!(files(&found(&two, None)), [a, b]);
}

#[test]
fn shards_without_an_index_are_counted() {
    let missing = |files: &[&str]| {
        let files: Vec<(&str, &str)> = files.iter().map(|file| (*file, "")).collect();
        match layout(&InMemory::new(&files), None) {
            Ok(layout) => Ok(layout.components[0].files.len()),
            Err(DirectoryError::Missing(missing @ Missing::Shards { .. })) => {
                Err(format!("{}", missing.at(Path::new("m"))))
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(missing(&["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]), Ok(2));
    assert_eq!(missing(&["m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"]), Ok(2));
    assert_eq!(
        missing(&["m_00001_of_00003.safetensors", "m_00003_of_00003.safetensors"]).unwrap_err(),
        "`m` is incomplete: of its 3 files of weights `m_00002_of_00003.safetensors` is missing: get the missing files"
    );
    assert_eq!(
        missing(&["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"]).unwrap_err(),
        "`m` is incomplete: of its 3 files of weights `m-00002-of-00003.safetensors` is missing: get the missing files"
    );
    let one = missing(&["m-00002-of-99999.safetensors"]).unwrap_err();
    assert!(one.contains("`m-00001-of-99999.safetensors`") && one.contains("and 99995 more are missing"), "{one}");
}

#[test]
fn a_pipeline_without_weights_of_a_component_is_incomplete() {
    let index = r#"{"_class_name":"P","unet":["diffusers","U"],"vae":["diffusers","V"],"scheduler":["diffusers","DDIMScheduler"],
        "tokenizer":["transformers","CLIPTokenizer"],"mel":["audio","Mel"],"gone":[null,null],"force":true}"#;
    let whole = [
        ("model_index.json", index),
        ("unet/a.safetensors", ""),
        ("vae/a.fp16.safetensors", ""),
        ("mel/mel_config.json", ""),
        ("scheduler/config.json", ""),
    ];
    let layout = found(&[whole.as_slice(), &[("ema/a.safetensors", ""), ("all.safetensors", "")]].concat(), None);
    assert_eq!(files(&layout), ["unet/a.safetensors", "vae/a.fp16.safetensors"]);
    assert_eq!(
        left_out(&layout),
        ["left out: `all.safetensors`, `ema/a.safetensors`: weights that model_index.json does not name"]
    );
    assert_eq!(files(&found(&whole, Some("fp16"))), files(&layout));
    assert!(matches!(error(&whole, Some("bf16")), DirectoryError::Variant { .. }));
    for vae in ["vae/config.json", "vae/a.safetensors.incomplete", "README.md"] {
        let files = [whole[0], whole[1], whole[3], (vae, "")];
        let names = vec!["vae".to_string()];
        assert_eq!(error(&files, None), DirectoryError::Missing(Missing::Components { names }), "{vae}");
    }
}

#[test]
fn adapters_are_known_by_their_tensors() {
    assert!(is_adapter(["unet.to_q.lora_A.weight", "unet.to_q.lora_B.weight"]));
    assert!(is_adapter(["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"]));
    assert!(!is_adapter(["model.q_proj.weight", "model.q_proj.lora_A.weight"]));
    assert!(!is_adapter(["model.alpha"]));
    assert!(!is_adapter([]));
}

#[test]
fn a_tensor_in_two_files_or_in_the_wrong_one_is_refused() {
    let weight_map = BTreeMap::from([("w".to_string(), "a.safetensors".to_string())]);
    let component = Component {
        name: String::new(),
        files: vec!["a.safetensors".into(), "b.safetensors".into()],
        index: Some(Index { path: "i.json".into(), weight_map }),
    };
    let problem = |tensors: &[(&str, &str)]| {
        let found: Vec<_> = tensors.iter().map(|&(name, file)| FoundTensor { name, file: Path::new(file) }).collect();
        match component.check::<Infallible>(&found) {
            Err(DirectoryError::File { problem, .. }) => Some(problem),
            Ok(()) => None,
            Err(other) => panic!("expected a problem of a file, found {other:?}"),
        }
    };
    assert_eq!(problem(&[("w", "a.safetensors")]), None);
    let twice = problem(&[("w", "a.safetensors"), ("w", "b.safetensors")]);
    assert!(matches!(twice, Some(FileProblem::TwoFiles { .. })), "{twice:?}");
    assert!(matches!(problem(&[("w", "b.safetensors")]), Some(FileProblem::OtherShard { .. })));
    assert!(matches!(problem(&[("v", "a.safetensors"), ("w", "a.safetensors")]), Some(FileProblem::NotInIndex { .. })));
    assert!(matches!(problem(&[]), Some(FileProblem::NotInShard { .. })));
}
