//! Object stores in which every operation is checked.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use url::Url;

use crate::allowed::store_key;
use crate::{AllowedPaths, StoreError};

/// The scheme of stores that the service makes for itself. Their hosts are secrets, so that no client can name one.
const OWN_SCHEME: &str = "ingest";

/// Files looked at together for a listing.
const HEADS: usize = 8;

/// The stores of a server: of the file system and of other stores what is allowed.
#[derive(Debug)]
pub struct GuardedStores {
    allowed: Arc<AllowedPaths>,
    files: Arc<dyn ObjectStore>,
    others: RwLock<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl GuardedStores {
    /// What is allowed of the file system, and of the stores that are registered later.
    pub fn new(allowed: Arc<AllowedPaths>) -> Self {
        let files = GuardedStore { inner: Arc::new(LocalFileSystem::new()), guard: Guard::Files(Arc::clone(&allowed)) };
        Self { allowed, files: Arc::new(files), others: RwLock::default() }
    }

    /// Adds the store of a URL; gives back the one that it replaces.
    pub fn register(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.others.write().unwrap_or_else(PoisonError::into_inner).insert(store_key(url), store)
    }

    /// Removes the store of a URL, if there is one.
    pub fn deregister(&self, url: &Url) -> Option<Arc<dyn ObjectStore>> {
        self.others.write().unwrap_or_else(PoisonError::into_inner).remove(&store_key(url))
    }

    /// The store of a URL, every operation of which is checked.
    ///
    /// # Errors
    /// If nothing of it is allowed, or there is no such store.
    pub fn get(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if url.scheme() == "file" {
            return Ok(Arc::clone(&self.files));
        }
        let key = store_key(url);
        let prefixes = self.allowed.prefixes(&key);
        let store = self.others.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        match store {
            Some(store) if url.scheme() == OWN_SCHEME => Ok(store),
            _ if prefixes.is_empty() => Err(StoreError::outside(Path::new(url.as_str()))),
            Some(inner) => Ok(Arc::new(GuardedStore { inner, guard: Guard::Prefixes { store: key, prefixes } })),
            None => Err(StoreError::NoStore { store: key }),
        }
    }
}

/// A store of which a part is allowed.
#[derive(Debug)]
struct GuardedStore {
    inner: Arc<dyn ObjectStore>,
    guard: Guard,
}

/// What is allowed of a store.
#[derive(Debug, Clone)]
enum Guard {
    /// Of the file system.
    Files(Arc<AllowedPaths>),
    /// Of another store: what begins with one of these.
    Prefixes { store: String, prefixes: Vec<ObjectPath> },
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl Guard {
    /// Where an object really is; an error if that is not allowed.
    fn real(&self, location: &ObjectPath, what_for: Use) -> Result<ObjectPath> {
        match self {
            Self::Files(allowed) => {
                let path = file_path(location)?;
                let real = if what_for == Use::Read { allowed.check_read(&path) } else { allowed.check(&path) };
                Ok(ObjectPath::from_absolute_path(real.map_err(generic)?)?)
            }
            Self::Prefixes { store, prefixes } => {
                if prefixes.iter().any(|prefix| location.prefix_matches(prefix)) {
                    return Ok(location.clone());
                }
                Err(generic(StoreError::outside(Path::new(&format!("{store}/{location}")))))
            }
        }
    }
}

impl fmt::Display for GuardedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for GuardedStore {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let real = self.guard.real(location, Use::Write)?;
        self.inner.put_opts(&real, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let real = self.guard.real(location, Use::Write)?;
        self.inner.put_multipart_opts(&real, opts).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let real = self.guard.real(location, Use::Read)?;
        let mut found = self.inner.get_opts(&real, options).await?;
        found.meta.location = location.clone();
        Ok(found)
    }

    async fn get_ranges(&self, location: &ObjectPath, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let real = self.guard.real(location, Use::Read)?;
        self.inner.get_ranges(&real, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let (inner, guard) = (Arc::clone(&self.inner), self.guard.clone());
        let delete = move |location: ObjectPath| {
            let (inner, real) = (Arc::clone(&inner), guard.real(&location, Use::Write));
            async move {
                inner.delete(&real?).await?;
                Ok::<_, Error>(location)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        match &self.guard {
            Guard::Files(allowed) => {
                let (allowed, inner) = (Arc::clone(allowed), Arc::clone(&self.inner));
                stream::once(found(allowed, prefix, true))
                    .map_ok(move |found| metas(Arc::clone(&inner), found.files))
                    .try_flatten()
                    .boxed()
            }
            Guard::Prefixes { .. } => match self.guard.real(&prefix, Use::Read) {
                Ok(prefix) => self.inner.list(Some(&prefix)),
                Err(error) => stream::iter([Err(error)]).boxed(),
            },
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        match &self.guard {
            Guard::Files(allowed) => {
                let found = found(Arc::clone(allowed), prefix, false).await?;
                let objects = metas(Arc::clone(&self.inner), found.files).try_collect().await?;
                Ok(ListResult { common_prefixes: found.directories, objects })
            }
            Guard::Prefixes { .. } => {
                let prefix = self.guard.real(&prefix, Use::Read)?;
                self.inner.list_with_delimiter(Some(&prefix)).await
            }
        }
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        let (from, to) = (self.guard.real(from, Use::Read)?, self.guard.real(to, Use::Write)?);
        self.inner.copy_opts(&from, &to, options).await
    }

    async fn rename_opts(&self, from: &ObjectPath, to: &ObjectPath, options: RenameOptions) -> Result<()> {
        let (from, to) = (self.guard.real(from, Use::Write)?, self.guard.real(to, Use::Write)?);
        self.inner.rename_opts(&from, &to, options).await
    }
}

/// What a directory holds, links that lead out left out.
#[derive(Debug, Default)]
struct Found {
    /// As they are asked for, and where they really are.
    files: Vec<(ObjectPath, ObjectPath)>,
    directories: Vec<ObjectPath>,
}

/// What a directory and, if `deep`, those in it hold.
async fn found(allowed: Arc<AllowedPaths>, prefix: ObjectPath, deep: bool) -> Result<Found> {
    let walked = tokio::task::spawn_blocking(move || walk(&allowed, prefix, deep)).await;
    walked.unwrap_or_else(|error| Err(generic(error)))
}

fn walk(allowed: &AllowedPaths, prefix: ObjectPath, deep: bool) -> Result<Found> {
    let real = allowed.check(&file_path(&prefix)?).map_err(generic)?;
    let mut found = Found::default();
    // A directory that several links lead to is listed once, and a circle of links ends.
    let mut seen = HashSet::from([real.clone()]);
    let mut left = vec![(prefix, real)];
    while let Some((shown, directory)) = left.pop() {
        // What is no directory holds nothing.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let Ok(shown) = ObjectPath::parse(format!("{shown}/{name}")) else { continue };
            let Ok(real) = allowed.check(&directory.join(name)) else { continue };
            if real.is_dir() {
                if deep && seen.insert(real.clone()) {
                    left.push((shown.clone(), real));
                }
                found.directories.push(shown);
            } else if real.is_file()
                && let Ok(real) = ObjectPath::from_absolute_path(&real)
                && !is_unfinished(&shown)
                && !is_unfinished(&real)
            {
                found.files.push((shown, real));
            }
        }
    }
    found.files.sort();
    found.directories.sort();
    Ok(found)
}

/// Whether a file is one that is being written: those are named `name#1`, and are no objects.
fn is_unfinished(location: &ObjectPath) -> bool {
    let suffix = location.filename().and_then(|name| name.split_once('#')).map_or("", |(_, suffix)| suffix);
    !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is to be known of files; those that have vanished since are left out.
fn metas(inner: Arc<dyn ObjectStore>, files: Vec<(ObjectPath, ObjectPath)>) -> BoxStream<'static, Result<ObjectMeta>> {
    let head = move |(shown, real): (ObjectPath, ObjectPath)| {
        let inner = Arc::clone(&inner);
        async move {
            match inner.head(&real).await {
                Ok(meta) => Some(Ok(ObjectMeta { location: shown, ..meta })),
                Err(Error::NotFound { .. }) => None,
                Err(error) => Some(Err(error)),
            }
        }
    };
    stream::iter(files).map(head).buffered(HEADS).filter_map(std::future::ready).boxed()
}

/// The path of the file system that a location stands for.
pub(crate) fn file_path(location: &ObjectPath) -> Result<PathBuf> {
    let mut url = Url::parse("file:///").map_err(generic)?;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(location.parts());
    }
    url.to_file_path().map_err(|()| generic(StoreError::outside(Path::new(location.as_ref()))))
}

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "file", source: Box::new(source) }
}
