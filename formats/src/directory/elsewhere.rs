//! Where weights may be instead of the place that was named.

use std::path::{Path, PathBuf};

use super::files::{is_weights, name};
use super::{Directory, DirectoryError, Entry, EntryKind, Missing, Result};

/// How deep directories below one without weights are looked into.
const DEPTH: usize = 4;

/// The most directories with weights that are named.
const MOST: usize = 6;

/// The directory of the versions of a repository in the cache of the Hugging Face Hub.
const SNAPSHOTS: &str = "snapshots";

/// What there is instead of a path that does not exist, as far as its text tells.
pub fn not_there(path: &Path) -> Missing {
    let text = path.to_string_lossy();
    if text.contains("://") || text.starts_with("hf:") {
        return Missing::Address;
    }
    let is_part = |part: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part != "." && part != ".." && part.chars().all(is_allowed)
    };
    match text.split_once('/') {
        Some((owner, name)) if is_part(owner) && is_part(name) && !is_weights(path) => Missing::HubId,
        _ => Missing::Nothing,
    }
}

/// Why a directory has no weights of its own.
pub(super) fn without_weights<D: Directory>(directory: &D, entries: &[Entry]) -> Result<Missing, D::Error> {
    let snapshots = Path::new(SNAPSHOTS);
    if entries.iter().any(|entry| entry.path == snapshots && entry.is_directory()) {
        let versions = directory.list(snapshots).map_err(DirectoryError::Store)?;
        let mut versions: Vec<PathBuf> =
            versions.into_iter().filter(Entry::is_directory).map(|entry| entry.path).collect();
        // What `refs/main` names was fetched last, unless somebody asked for another version.
        let main = directory.read(Path::new("refs/main")).map(|text| String::from_utf8_lossy(&text).trim().to_string());
        if let Ok(main) = main {
            versions.sort_by_key(|version| name(version) != main);
        }
        if !versions.is_empty() {
            return Ok(Missing::CacheRepository { versions });
        }
    }
    let mut found = Vec::new();
    let identity = directory.identity().map_err(DirectoryError::Store)?;
    look_into(directory, entries, DEPTH, &mut vec![identity], &mut found)?;
    Ok(if found.is_empty() { Missing::NoWeights } else { Missing::InDirectories { directories: found } })
}

/// Finds directories with weights, at most [`MOST`]. `trail` are the directories above: links may lead back to one.
fn look_into<D: Directory>(
    directory: &D,
    entries: &[Entry],
    depth: usize,
    trail: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<(), D::Error> {
    for entry in entries {
        let EntryKind::Directory(identity) = &entry.kind else { continue };
        if found.len() == MOST || depth == 0 || trail.contains(identity) {
            continue;
        }
        // A directory that may not be listed says nothing of weights.
        let Ok(inner) = directory.list(&entry.path) else { continue };
        if inner.iter().any(|inner| !inner.is_directory() && is_weights(&inner.path)) {
            found.push(entry.path.clone());
            continue;
        }
        trail.push(identity.clone());
        look_into(directory, &inner, depth - 1, trail, found)?;
        trail.pop();
    }
    Ok(())
}
