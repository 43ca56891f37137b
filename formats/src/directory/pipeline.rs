//! The components of a pipeline: which of them have weights, and which should.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::choice::{Chosen, choose};
use super::files::{is_unfinished_weights, is_weights, name};
use super::left_out::{LeftOut, Why};
use super::{Directory, DirectoryError, Entry, FileProblem, Layout, Missing, PIPELINE, Result, is_plain, read_json};

/// Parts of names of classes whose objects have no weights.
const WITHOUT_WEIGHTS: &[&str] = &["Scheduler", "Tokenizer", "Processor", "FeatureExtractor", "Guider", "Guidance"];

/// What components without weights are called.
const NAMES_WITHOUT_WEIGHTS: &[&str] = &["scheduler", "tokenizer", "feature_extractor", "image_processor", "processor"];

/// The configuration that a component with weights has.
const CONFIG: &str = "config.json";

/// The components that `model_index.json` names and that have weights. Schedulers and tokenizers have none. Weights in
/// the pipeline's own directory are the same again in one file, and are left alone.
pub(super) fn pipeline<D: Directory>(
    directory: &D,
    entries: &[Entry],
    variant: Option<&str>,
) -> Result<Layout, D::Error> {
    let members: BTreeMap<String, serde_json::Value> =
        read_json(directory, Path::new(PIPELINE), "a JSON object of components")?;
    let (mut found, mut missing, mut named) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in members {
        // [library, class]; the class is null for an optional component that is not there.
        let Some([_, class]) = value.as_array().map(Vec::as_slice) else { continue };
        if class.is_null() {
            continue;
        }
        if !is_plain(&key) {
            return Err(DirectoryError::file(Path::new(PIPELINE), None, FileProblem::ComponentName(key)));
        }
        let path = PathBuf::from(&key);
        let is_there = entries.iter().any(|entry| entry.path == path && entry.is_directory());
        let inner = if is_there { directory.list(&path).map_err(DirectoryError::Store)? } else { Vec::new() };
        match choose(directory, &path, &inner, variant) {
            Ok(Some(chosen)) => found.push(chosen),
            Ok(None) if has_no_weights(&key, class.as_str().unwrap_or_default(), &inner) => {}
            Ok(None) | Err(DirectoryError::Missing(Missing::Unfinished { .. })) => missing.push(key),
            Err(error) => return Err(error),
        }
        named.push(path);
    }
    if found.is_empty() {
        return Err(DirectoryError::Missing(Missing::NoComponent));
    }
    if !missing.is_empty() {
        return Err(DirectoryError::Missing(Missing::Components { names: missing }));
    }
    let mut layout = Layout { components: Vec::new(), left_out: unnamed(directory, entries, &named)? };
    refuse_unknown_variant(&found, variant)?;
    for Chosen { component, left_out, .. } in found {
        layout.components.push(component);
        layout.left_out.extend(left_out);
    }
    Ok(layout)
}

/// Refuses a variant that no component has.
pub(super) fn refuse_unknown_variant<E>(found: &[Chosen], variant: Option<&str>) -> Result<(), E> {
    match variant {
        Some(asked) if !found.iter().any(|chosen| chosen.has_variant) => {
            let there = found.iter().flat_map(|chosen| chosen.variants.iter().cloned());
            let mut there: Vec<String> = there.collect();
            there.sort();
            there.dedup();
            Err(DirectoryError::Variant { directory: PathBuf::new(), asked: Some(asked.to_string()), there })
        }
        _ => Ok(()),
    }
}

/// Whether a component is of a kind that has no weights: by its name or class, or since it has a configuration, and not
/// one of weights.
fn has_no_weights(name: &str, class: &str, entries: &[Entry]) -> bool {
    let has = |is: &dyn Fn(&Path) -> bool| entries.iter().any(|entry| !entry.is_directory() && is(&entry.path));
    let is_json = |path: &Path| path.extension().is_some_and(|ending| ending == "json");
    NAMES_WITHOUT_WEIGHTS.iter().any(|known| name.starts_with(known))
        || WITHOUT_WEIGHTS.iter().any(|known| class.contains(known))
        || has(&is_json) && !has(&|path| path.file_name() == Some(CONFIG.as_ref()))
}

/// Weights that are in the pipeline's own directory, or in directories that it does not name.
fn unnamed<D: Directory>(directory: &D, entries: &[Entry], named: &[PathBuf]) -> Result<Vec<LeftOut>, D::Error> {
    let (mut weights, mut unfinished) = (Vec::new(), Vec::new());
    for entry in entries {
        let inner = match entry.is_directory() {
            true if named.contains(&entry.path) => continue,
            true => directory.list(&entry.path).map_err(DirectoryError::Store)?,
            false => vec![entry.clone()],
        };
        for file in inner.into_iter().filter(|inner| !inner.is_directory()) {
            if is_unfinished_weights(&file.path) {
                unfinished.push(file.path);
            } else if is_weights(&file.path) && !name(&file.path).starts_with('.') {
                weights.push(file.path);
            }
        }
    }
    let groups = [(weights, Why::NotInPipeline), (unfinished, Why::Unfinished)];
    Ok(groups.into_iter().filter(|(files, _)| !files.is_empty()).map(|(files, why)| LeftOut { files, why }).collect())
}
