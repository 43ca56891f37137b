use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;
use url::Url;

use crate::{AllowedPaths, GuardedStores, StoreError};

/// Two directories side by side, `a/b` and `a/bc`, each with a file `x`; `a/b` is allowed.
struct Place {
    directory: TempDir,
    allowed: Arc<AllowedPaths>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a/b", "a/bc"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("x"), name).unwrap();
        }
        let allowed = AllowedPaths::new([directory.path().join("a/b").to_str().unwrap()]).unwrap();
        Self { directory, allowed: Arc::new(allowed) }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn is_allowed(&self, relative: &str) -> bool {
        match self.allowed.check(&self.path(relative)) {
            Ok(real) => real.starts_with(self.path("a/b").canonicalize().unwrap()),
            Err(error @ StoreError::Outside { .. }) => {
                let shown = self.path(relative).display().to_string();
                assert_eq!(error.to_string(), format!("`{shown}` is outside the directories this server allows"));
                false
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[cfg(unix)]
    fn link(&self, to: &str, from: &str) {
        std::os::unix::fs::symlink(self.path(to), self.path(from)).unwrap();
    }

    fn files(&self) -> Arc<dyn ObjectStore> {
        GuardedStores::new(Arc::clone(&self.allowed)).get(&Url::parse("file:///").unwrap()).unwrap()
    }

    fn location(&self, relative: &str) -> ObjectPath {
        // Not canonical: clients name links.
        let real = self.directory.path().canonicalize().unwrap().join(relative);
        ObjectPath::parse(real.to_str().unwrap()).unwrap()
    }
}

#[test]
fn only_what_is_in_the_directory() {
    let place = Place::new();
    for inside in ["a/b", "a/b/x", "a/b/", "a/b/../b/x", "a/b/./x", "a/b/new", "a/b/new/deeper/file", "a/bc/../b/new"] {
        assert!(place.is_allowed(inside), "{inside}");
    }
    for outside in ["", "a", "a/bc", "a/bc/x", "a/b/..", "a/b/../bc/x", "a/b/../bc/new", "a/b/new/../../bc/x", "a/b\0"]
    {
        assert!(!place.is_allowed(outside), "{outside}");
    }
    assert!(place.allowed.check(Path::new("/etc/passwd")).is_err());
    assert!(AllowedPaths::default().check(&place.path("a/b/x")).is_err(), "nothing is allowed by default");
}

#[cfg(unix)]
#[test]
fn links_are_resolved() {
    let place = Place::new();
    place.link("a/bc", "a/b/out");
    place.link("a/b", "a/in");
    place.link("nowhere", "a/b/dangling");
    place.link("a/b/circle", "a/b/circle");
    for outside in
        ["a/b/out", "a/b/out/x", "a/b/out/new", "a/b/dangling", "a/b/dangling/", "a/b/dangling/new", "a/b/circle"]
    {
        assert!(!place.is_allowed(outside), "{outside}");
    }
    assert!(place.is_allowed("a/in/x") && place.is_allowed("a/in/new"));
}

#[cfg(unix)]
#[test]
fn a_model_has_no_links_out() {
    let place = Place::new();
    fs::create_dir_all(place.path("a/b/model/unet")).unwrap();
    let check = || place.allowed.check_input(&place.path("a/b/model"));
    place.link("a/b/x", "a/b/model/unet/inside.safetensors");
    check().unwrap();
    place.link("a/bc/x", "a/b/model/unet/outside.safetensors");
    let message = check().unwrap_err().to_string();
    assert!(message.contains("model/unet/outside.safetensors` is outside"), "{message}");
    // The name of a link tells the format, not that of the file it leads to.
    let named = place.allowed.check_input(&place.path("a/b/model/unet/inside.safetensors")).unwrap();
    assert_eq!(named.file_name().unwrap(), "inside.safetensors");
}

#[test]
fn relative_paths_begin_where_the_server_runs() {
    let allowed = AllowedPaths::new(["src"]).unwrap();
    assert!(allowed.check(Path::new("src/lib.rs")).unwrap().is_absolute());
    assert!(allowed.check(Path::new("Cargo.toml")).is_err());
    let message = allowed.check(Path::new("src/../Cargo.toml")).unwrap_err().to_string();
    assert_eq!(message, "`src/../Cargo.toml` is outside the directories this server allows");
}

#[test]
fn what_is_not_there_cannot_be_allowed() {
    let message = AllowedPaths::new(["/no/such/place"]).unwrap_err().to_string();
    assert!(message.starts_with("`/no/such/place` cannot be found"), "{message}");
    let place = Place::new();
    let url = Url::from_directory_path(place.path("a/b")).unwrap();
    let allowed = AllowedPaths::new([url.as_str()]).unwrap();
    assert!(allowed.check(&place.path("a/b/x")).is_ok());
    assert_eq!(allowed.check(Path::new(&format!("{url}x"))).unwrap(), place.path("a/b/x").canonicalize().unwrap());
    assert!(allowed.check(Path::new(&format!("{url}../bc/x"))).is_err());
}

#[tokio::test]
async fn every_operation_on_files_is_checked() {
    let place = Place::new();
    let store = place.files();
    let (inside, outside) = (place.location("a/b/x"), place.location("a/bc/x"));
    let found = store.get(&inside).await.unwrap();
    assert_eq!(found.meta.location, inside);
    assert_eq!(&*found.bytes().await.unwrap(), b"a/b");
    assert_eq!(&*store.get_ranges(&inside, &[0..1, 0..0]).await.unwrap()[0], b"a");
    store.put(&place.location("a/b/new/y"), "y".into()).await.unwrap();
    store.copy(&inside, &place.location("a/b/copy")).await.unwrap();
    store.rename(&place.location("a/b/copy"), &place.location("a/b/moved")).await.unwrap();
    store.delete(&place.location("a/b/moved")).await.unwrap();

    let refused = [
        store.get(&outside).await.map(drop),
        store.get_ranges(&outside, &[0..1, 0..0]).await.map(drop),
        store.head(&outside).await.map(drop),
        store.head(&place.location("a/bc/nothing")).await.map(drop),
        store.put(&outside, "y".into()).await.map(drop),
        store.put_multipart(&outside).await.map(drop),
        store.delete(&outside).await,
        store.copy(&outside, &inside).await,
        store.copy(&inside, &outside).await,
        store.rename(&outside, &inside).await,
        store.rename(&inside, &outside).await,
        store.list(Some(&place.location("a"))).try_collect::<Vec<_>>().await.map(drop),
        store.list(None).try_collect::<Vec<_>>().await.map(drop),
        store.list_with_delimiter(Some(&place.location("a/bc"))).await.map(drop),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("is outside the directories this server allows"), "{number}: {message}");
    }
    assert_eq!(fs::read_to_string(place.path("a/bc/x")).unwrap(), "a/bc");
}

#[cfg(unix)]
#[tokio::test]
async fn a_listing_follows_no_link_out() {
    let place = Place::new();
    fs::create_dir(place.path("a/b/deep")).unwrap();
    fs::write(place.path("a/b/deep/a %#b"), "").unwrap();
    fs::write(place.path("a/b/unfinished#1"), "").unwrap();
    place.link("a/bc", "a/b/out");
    place.link("a/bc/x", "a/b/file");
    place.link("a/b", "a/b/deep/circle");
    let store = place.files();
    let prefix = place.location("a/b");
    let listed: Vec<_> = store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(listed, [place.location("a/b/deep/a %#b"), place.location("a/b/x")]);
    for location in &listed {
        store.head(location).await.unwrap();
    }
    let shallow = store.list_with_delimiter(Some(&prefix)).await.unwrap();
    assert_eq!(shallow.common_prefixes, [place.location("a/b/deep")]);
    assert_eq!(shallow.objects.len(), 1);
    assert!(store.get(&place.location("a/b/out/x")).await.is_err());
}

#[tokio::test]
async fn files_that_are_served_are_read_and_nothing_else() {
    let place = Place::new();
    place.allowed.serve([place.path("a/bc/x")]).unwrap();
    let (store, served) = (place.files(), place.location("a/bc/x"));
    store.get(&served).await.unwrap();
    assert!(store.put(&served, "y".into()).await.is_err());
    assert!(store.delete(&served).await.is_err());
    assert!(place.allowed.check(&place.path("a/bc/x")).is_err());
}

#[tokio::test]
async fn other_stores_by_the_prefixes_of_their_urls() {
    let allowed = AllowedPaths::new(["mem://bucket/a/b"]).unwrap();
    let stores = GuardedStores::new(Arc::new(allowed));
    for url in ["mem://bucket", "mem://other", "ingest://secret"] {
        stores.register(&Url::parse(url).unwrap(), Arc::new(InMemory::new()));
    }
    let store = |url: &str| stores.get(&Url::parse(url).unwrap());
    let message = store("mem://other/").unwrap_err().to_string();
    assert!(message.contains("`mem://other/` is outside"), "{message}");
    assert!(store("http://bucket/").is_err());
    assert!(store("ingest://secret/").is_ok() && store("ingest://guess/").is_err());
    let bucket = store("mem://bucket/").unwrap();
    bucket.put(&"a/b/x".into(), "x".into()).await.unwrap();
    assert_eq!(bucket.list(Some(&"a/b".into())).try_collect::<Vec<_>>().await.unwrap().len(), 1);
    for outside in ["a/bc/x", "a", "x"] {
        assert!(bucket.put(&outside.into(), "x".into()).await.is_err(), "{outside}");
        assert!(bucket.list(Some(&outside.into())).try_collect::<Vec<_>>().await.is_err(), "{outside}");
    }
}
