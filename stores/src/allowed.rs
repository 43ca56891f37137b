//! What of the file system and of object stores the clients of a server may reach.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use object_store::path::Path as ObjectPath;
use url::{Position, Url};

use crate::{AllowProblem, StoreError};

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The most directories below a model's that are looked through for links.
const MOST_DIRECTORIES: usize = 10_000;

/// Directories, files and prefixes of object stores that clients may reach; nothing else.
///
/// Paths, also as `file://` URLs, are compared as they are on disk, symbolic links and `..` resolved, part by part: `/a/bc` is not
/// in `/a/b`.
#[derive(Debug, Default)]
pub struct AllowedPaths {
    /// Canonical.
    paths: Vec<PathBuf>,
    urls: Vec<UrlPrefix>,
    /// Files that are read and nothing else, canonical.
    served: RwLock<HashSet<PathBuf>>,
}

/// A prefix of an object store.
#[derive(Debug)]
struct UrlPrefix {
    /// Scheme, host and port.
    store: String,
    prefix: ObjectPath,
}

impl AllowedPaths {
    /// Allows directories with all that is in them, files, and URLs with all that begins with them (`s3://bucket/prefix`).
    /// Nothing given is nothing allowed.
    ///
    /// # Errors
    /// For a path that does not exist, or a URL that names no place.
    pub fn new<'a>(allowed: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut new = Self::default();
        for text in allowed {
            let url = if text.contains("://") { Url::parse(text).ok() } else { None };
            match url {
                None => new.paths.push(existing(Path::new(text), text)?),
                Some(url) if url.scheme() == "file" => {
                    let path = url.to_file_path().map_err(|()| not_allowable(text, AllowProblem::OtherMachine))?;
                    new.paths.push(existing(&path, text)?);
                }
                Some(url) => {
                    let prefix = ObjectPath::from_url_path(url.path());
                    let prefix = prefix.map_err(|error| not_allowable(text, AllowProblem::Prefix(error)))?;
                    new.urls.push(UrlPrefix { store: store_key(&url), prefix });
                }
            }
        }
        Ok(new)
    }

    /// Lets files be read by the tables that are made of them, wherever they lie. Nothing else of their directories is allowed.
    ///
    /// # Errors
    /// If one does not exist.
    pub fn serve(&self, files: impl IntoIterator<Item = PathBuf>) -> Result<()> {
        let canonical = |path: PathBuf| path.canonicalize().map_err(|error| StoreError::io(&path, error));
        let files = files.into_iter().map(canonical).collect::<Result<Vec<_>>>()?;
        self.served.write().unwrap_or_else(PoisonError::into_inner).extend(files);
        Ok(())
    }

    /// The canonical path of a file or directory, which need not exist yet: the one to open, for what was asked for may lead
    /// elsewhere the next moment.
    ///
    /// # Errors
    /// [`Outside`](StoreError::Outside) if it is outside; the message tells nothing that the client did not know.
    pub fn check(&self, path: &Path) -> Result<PathBuf> {
        resolved(path).ok().filter(|real| self.contains(real)).ok_or_else(|| StoreError::outside(path))
    }

    /// The same for what is to be read as a model or table: no link in it, if it is a directory, may lead out.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_input(&self, path: &Path) -> Result<PathBuf> {
        let real = self.check(path)?;
        if real.is_dir() {
            self.check_links(path, &real)?;
            return Ok(real);
        }
        if real.extension() == path.extension() {
            return Ok(real);
        }
        // Formats are told by extensions, and it is the link that has it.
        let absolute = std::path::absolute(path).ok();
        let named = absolute.and_then(|path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?)));
        Ok(named.unwrap_or(real))
    }

    /// The canonical path of a file that a query reads.
    pub(crate) fn check_read(&self, path: &Path) -> Result<PathBuf> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        resolved(path)
            .ok()
            .filter(|real| self.contains(real) || served.contains(real))
            .ok_or_else(|| StoreError::outside(path))
    }

    /// What is allowed of an object store.
    pub(crate) fn prefixes(&self, store: &str) -> Vec<ObjectPath> {
        self.urls.iter().filter(|url| url.store == store).map(|url| url.prefix.clone()).collect()
    }

    fn contains(&self, real: &Path) -> bool {
        self.paths.iter().any(|allowed| real.starts_with(allowed))
    }

    /// Refuses links out of a directory, or out of one that it leads to.
    fn check_links(&self, path: &Path, real: &Path) -> Result<()> {
        let mut seen = HashSet::from([real.to_path_buf()]);
        let mut left = vec![(path.to_path_buf(), real.to_path_buf())];
        while let Some((shown, real)) = left.pop() {
            // Who opens what cannot be listed says so.
            let Ok(entries) = fs::read_dir(&real) else { continue };
            for entry in entries.flatten() {
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                let shown = shown.join(entry.file_name());
                let target = if is_link { entry.path().canonicalize().ok() } else { Some(entry.path()) };
                // One that leads nowhere cannot be opened.
                let Some(target) = target else { continue };
                if is_link && !self.contains(&target) {
                    return Err(StoreError::outside(&shown));
                }
                if target.is_dir() && seen.insert(target.clone()) {
                    if seen.len() > MOST_DIRECTORIES {
                        return Err(StoreError::TooManyDirectories { path: path.to_path_buf() });
                    }
                    left.push((shown, target));
                }
            }
        }
        Ok(())
    }
}

/// A path as it is on disk: links and `..` resolved as far as it exists, the rest as it is written. It may be a `file://` URL.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let url = path.to_str().filter(|text| text.starts_with("file://")).and_then(|text| Url::parse(text).ok());
    let of_url = url.and_then(|url| url.to_file_path().ok());
    // Without the slash at its end, which would have links followed.
    let absolute: PathBuf = std::path::absolute(of_url.as_deref().unwrap_or(path))?.components().collect();
    let mut existing = absolute.as_path();
    let mut missing = Vec::new();
    loop {
        let error = match existing.canonicalize() {
            Ok(real) => return Ok(missing.into_iter().rev().fold(real, |path: PathBuf, name| path.join(name))),
            Err(error) => error,
        };
        let is_missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        // A link that leads nowhere may lead somewhere when the file is written.
        let is_link = existing.symlink_metadata().is_ok();
        match (existing.components().next_back(), existing.parent()) {
            (Some(Component::Normal(name)), Some(parent)) if is_missing && !is_link => {
                missing.push(name);
                existing = parent;
            }
            _ => return Err(error),
        }
    }
}

/// An object store by its URL: scheme, host and port.
pub(crate) fn store_key(url: &Url) -> String {
    format!("{}://{}", url.scheme(), &url[Position::BeforeHost..Position::AfterPort])
}

fn existing(path: &Path, text: &str) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| not_allowable(text, AllowProblem::NotFound(error.kind())))
}

fn not_allowable(text: &str, problem: AllowProblem) -> StoreError {
    StoreError::Allow { text: text.to_string(), problem }
}
