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

fn files(directory: &InMemory) -> Vec<PathBuf> {
    components(directory).unwrap().into_iter().flat_map(|component| component.files).collect()
}

#[test]
fn components_are_found_without_a_disk() {
    let plain = InMemory::new(&[("model.fp16.safetensors", ""), ("model.safetensors", ""), ("config.json", "{}")]);
    assert_eq!(files(&plain), [PathBuf::from("model.safetensors")]);
    assert_eq!(config_files(&plain, false).unwrap(), [PathBuf::from("config.json")]);

    let index = r#"{"unet":["diffusers","U"],"vae":["diffusers","V"]}"#;
    let pipeline = InMemory::new(&[
        ("model_index.json", index),
        ("unet/a.safetensors", ""),
        ("unet/config.json", "{}"),
        ("vae/config.json", "{}"),
    ]);
    let found = components(&pipeline).unwrap();
    assert_eq!((found.len(), found[0].name.as_str()), (1, "unet"));
    assert_eq!(found[0].files, [PathBuf::from("unet/a.safetensors")]);
    let expected = ["model_index.json", "unet/config.json", "vae/config.json"].map(PathBuf::from);
    assert_eq!(config_files(&pipeline, true).unwrap(), expected);
}

#[test]
fn what_is_missing_is_data() {
    let missing = |files: &[(&str, &str)]| match components(&InMemory::new(files)) {
        Err(DirectoryError::Missing(missing)) => missing,
        other => panic!("expected weights to be missing, found {other:?}"),
    };
    assert_eq!(missing(&[("README.md", "")]), Missing::NoWeights);
    assert_eq!(missing(&[("arrow_quant.json", "{}")]), Missing::AlreadyQuantized);
    assert_eq!(missing(&[("model_index.json", "{}")]), Missing::NoComponent);
    let pickles = Missing::PicklesOnly { directory: PathBuf::new(), example: "m.bin".to_string() };
    assert_eq!(missing(&[("m.bin", "")]), pickles);
    assert_eq!(check_file(Path::new("m.ckpt")), Err(Missing::Pickle));
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
