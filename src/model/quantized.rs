//! Quantized model directories: the manifest, and whether the files are those it tells of.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::manifest::{FileEntry, MANIFEST, Manifest};

use crate::{QuantError, Result};

/// What is wrong with a file of a quantized model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// It is not there.
    #[error("is missing, but the manifest says {expected} bytes: the quantized model is damaged, quantize it again")]
    Missing { expected: u64 },
    /// It has another length.
    #[error(
        "has {found} bytes, but the manifest says {expected} bytes: the quantized model is damaged, quantize it again"
    )]
    Length { found: u64, expected: u64 },
    /// It has another content.
    #[error("is not what was written (its SHA-256 is {found}): quantize the model again")]
    Content { found: String },
}

/// A quantized model directory.
#[derive(Debug, Clone)]
pub(crate) struct QuantizedDirectory {
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl QuantizedDirectory {
    /// True if there is a manifest at a path: a directory with one is complete.
    pub(crate) fn is_at(path: &Path) -> bool {
        path.join(MANIFEST).is_file()
    }

    /// Opens a directory that has a manifest, and checks that its files are there with the sizes the manifest tells.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !Self::is_at(path) {
            return Err(QuantError::missing(path, Missing::NotQuantized));
        }
        let manifest_path = path.join(MANIFEST);
        let text = std::fs::read_to_string(&manifest_path).map_err(|e| QuantError::io(&manifest_path, e))?;
        let manifest = Manifest::parse(&text).map_err(|error| QuantError::defect(&manifest_path, None, error))?;
        let directory = Self { path: path.to_path_buf(), manifest };
        directory.check_sizes()?;
        Ok(directory)
    }

    /// Checks that all files are there with the sizes the manifest tells.
    pub(crate) fn check_sizes(&self) -> Result<()> {
        for FileEntry { path: relative, bytes, .. } in self.manifest.stored() {
            let expected = *bytes;
            let file = self.path.join(relative);
            let damage = match std::fs::metadata(&file).map(|metadata| metadata.len()) {
                Ok(found) if found == expected => continue,
                Ok(found) => Damage::Length { found, expected },
                Err(_) => Damage::Missing { expected },
            };
            return Err(QuantError::defect(&file, None, damage));
        }
        Ok(())
    }

    /// Checks that a file has the content that the manifest tells.
    pub(crate) fn verify_file(&self, file: &FileEntry) -> Result<()> {
        let path = self.path.join(&file.path);
        let found = hash_of(&path).map_err(|e| QuantError::io(&path, e))?;
        if found == file.sha256 { Ok(()) } else { Err(QuantError::defect(&path, None, Damage::Content { found })) }
    }

    /// The same for every file, between which, and within large ones, the caller may stop waiting.
    pub(crate) async fn verify(&self) -> Result<()> {
        for file in self.manifest.stored() {
            let path = self.path.join(&file.path);
            let found = hash_in_steps(&path).await.map_err(|e| QuantError::io(&path, e))?;
            if found != file.sha256 {
                return Err(QuantError::defect(&path, None, Damage::Content { found }));
            }
        }
        Ok(())
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn hash_of(path: &Path) -> io::Result<String> {
    let mut hash = ContentHash::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finish())
}

/// The same on the threads for blocking work, in steps between which the caller may stop waiting.
async fn hash_in_steps(path: &Path) -> io::Result<String> {
    /// Bytes of a step: a few milliseconds.
    const STEP: u64 = 8 << 20;
    let (mut file, mut hash) = (File::open(path)?, ContentHash::new());
    loop {
        let step = tokio::task::spawn_blocking(move || {
            let read = io::copy(&mut (&mut file).take(STEP), &mut hash)?;
            Ok::<_, io::Error>((read, file, hash))
        });
        let (read, rest, so_far) = step.await.map_err(io::Error::other)??;
        if read == 0 {
            return Ok(so_far.finish());
        }
        (file, hash) = (rest, so_far);
    }
}
