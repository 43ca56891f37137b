//! A target whose output is one file: what a trait for directories alone could not serve.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::{FileEntry, Manifest};

use super::{Layout, PartWriter, Target, TargetName};
use crate::plan::{Allowed, ModelPlan, Request};
use crate::{DiffusionQuantConfig, Model, QuantError, Result};

/// The name of the file while it is made.
const FILE: &str = "model.lines";

/// A file with a line for each row: its tensor and chunk.
#[derive(Debug)]
pub(super) struct OneFile;

impl Target for OneFile {
    fn allowed(&self) -> Allowed {
        Allowed { target: "one-file", ..TargetName::default().target().allowed() }
    }

    fn parts(&self) -> &'static str {
        "parts"
    }

    fn file(&self) -> Option<&'static str> {
        Some(FILE)
    }

    fn part_writer(&self, output: &Path, part: usize) -> Result<Box<dyn PartWriter>> {
        let relative = format!("parts/{part}");
        Ok(Box::new(Lines { path: output.join(&relative), relative, text: Vec::new() }))
    }

    fn layout(&self, model: &Arc<Model>, _: &DiffusionQuantConfig) -> Result<Arc<dyn Layout>> {
        Ok(Arc::new(LinesLayout { requests: vec![Request::Free; model.tensors().len()] }))
    }

    fn finish(&self, _: &Path, _: &Manifest) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct LinesLayout {
    requests: Vec<Request>,
}

impl Layout for LinesLayout {
    fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn assemble(&self, output: &Path, parts: Vec<FileEntry>, _: &ModelPlan) -> Result<Vec<FileEntry>> {
        let path = output.join(FILE);
        let io = |e| QuantError::io(&path, e);
        let mut text = Vec::new();
        for part in parts {
            text.extend(fs::read(output.join(part.path)).map_err(io)?);
        }
        File::create(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all())).map_err(io)?;
        Ok(vec![FileEntry { path: FILE.to_string(), bytes: text.len() as u64, sha256: ContentHash::of(&text) }])
    }
}

struct Lines {
    relative: String,
    path: PathBuf,
    text: Vec<u8>,
}

impl PartWriter for Lines {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let (tensors, chunks) = (batch.column(1).as_string::<i32>(), batch.column(3).as_primitive::<Int32Type>());
        for (tensor, chunk) in tensors.iter().zip(chunks) {
            writeln!(self.text, "{} {}", tensor.unwrap(), chunk.unwrap()).map_err(|e| QuantError::io(&self.path, e))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<FileEntry> {
        fs::write(&self.path, &self.text).map_err(|e| QuantError::io(&self.path, e))?;
        let sha256 = ContentHash::of(&self.text);
        Ok(FileEntry { path: self.relative, bytes: self.text.len() as u64, sha256 })
    }
}

#[test]
fn targets_are_known_by_their_names() {
    assert_eq!(TargetName::all().next(), Some("arrow-quant"));
    assert_eq!("arrow-quant".parse::<TargetName>().unwrap(), TargetName::default());
    let message = "zip".parse::<TargetName>().unwrap_err().to_string();
    assert!(message.starts_with("the target is 'zip', allowed: arrow-quant, gguf"), "{message}");
}
