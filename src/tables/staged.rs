//! A relation with the columns of the table `weights`, written to files that open as a model.
//!
//! A job reads its source several times, and a query may be slow, or give other rows the second time. So the query runs once
//! and its rows are written as they come, in any order and from any partition. Each tensor has a safetensors file of its own:
//! the first row of a tensor tells dtype and shape, and with them where every other row of it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_quant_formats::directory::PIPELINE;
use arrow_quant_formats::{ContentHash, StoredType, TensorEntry, full_name, safetensors, shown};
use arrow_quant_stores::Version;
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;

use crate::workers::blocking;
use crate::{QuantError, Result};
use rows::{Columns, Row, Rows};

mod rows;

/// The key in the header of each file under which the SHA-256 of its content stands.
const CONTENT: &str = "sha256";

/// Why a relation is not a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RelationError {
    #[error(
        "the query gives no column '{0}': it needs tensor, shape, start and weights, as the table weights has them"
    )]
    NoColumn(&'static str),
    #[error("the query gives two columns '{0}': give the others another name, with AS")]
    TwoColumns(&'static str),
    #[error("column '{column}' of the query is {found}, expected {expected}")]
    ColumnType { column: &'static str, found: String, expected: &'static str },
    #[error("the query gives no rows")]
    NoRows,
    #[error("the query gives a row whose tensor is NULL")]
    NullTensor,
    #[error("{column} is NULL")]
    Null { column: &'static str },
    #[error("component is '{}', expected the name of a directory", shown(.0))]
    ComponentName(String),
    #[error("component is empty, but other tensors have one")]
    NoComponent,
    #[error("no tensor of a file can have this name")]
    Name,
    #[error("dtype is '{}', expected one of {}", shown(.0), stored_types())]
    Dtype(String),
    #[error("dtype is {first} in one row and {second} in another")]
    TwoDtypes { first: StoredType, second: StoredType },
    #[error("shape is {0:?}, expected dimensions of 0 or more and fewer than 2^63 elements, in whole bytes")]
    Shape(Vec<i64>),
    #[error("shape is {first:?} in one row and {second:?} in another")]
    TwoShapes { first: Vec<i64>, second: Vec<i64> },
    #[error("{bytes} bytes from element {start} on do not divide into elements of {stored}")]
    Bytes { bytes: usize, start: i64, stored: StoredType },
    #[error("a chunk has elements {start} to {end}, but shape {shape:?} has {elements}")]
    Outside { start: i64, end: i128, shape: Vec<i64>, elements: u64 },
    #[error("two chunks have element {0}: each element must be in one row")]
    Overlap(u64),
    #[error("elements {start} to {end} are missing: every chunk of a tensor must be among the rows")]
    Missing { start: u64, end: u64 },
}

impl RelationError {
    /// The error of a query.
    fn of_query(self) -> QuantError {
        QuantError::field("query", self.to_string())
    }

    /// The error of a tensor that a query gives.
    fn of_tensor(self, component: &str, tensor: &str) -> QuantError {
        let tensor = full_name(component, tensor);
        let message = format!("the query's tensor '{}': {self}", shown(&tensor));
        QuantError::Quantization { tensor: Some(tensor), message }
    }
}

fn stored_types() -> String {
    StoredType::ALL.iter().map(|stored| stored.name()).collect::<Vec<_>>().join(", ")
}

/// Runs the query of a relation, and writes its rows to a directory that is there and empty. The result opens as a model.
/// The directory is held for as long as something may write to it, also after the future was dropped.
///
/// # Errors
/// If the relation lacks a column or has one of a wrong type, if its rows are not every element of each tensor once, if
/// the query fails, and if a file cannot be written.
pub(crate) async fn stage<D>(relation: DataFrame, directory: Arc<D>) -> Result<()>
where
    D: AsRef<Path> + Send + Sync + 'static,
{
    let columns = Columns::of(relation.schema()).map_err(RelationError::of_query)?;
    let selected = columns.expressions(relation.schema());
    let mut batches = relation.select(selected)?.execute_stream().await?;
    let mut writer = Writer { directory, tensors: BTreeMap::new(), open: None };
    while let Some(batch) = batches.try_next().await? {
        writer = blocking(move || writer.write(&batch, columns).map(|()| writer)).await?;
    }
    blocking(move || writer.finish()).await
}

/// Component and name of a tensor.
type Name = (String, String);

/// Writes rows to the files of their tensors.
struct Writer<D> {
    directory: Arc<D>,
    tensors: BTreeMap<Name, StagedTensor>,
    /// The file that was written to last; the next row is of the same tensor more often than not.
    open: Option<(Name, File)>,
}

/// A tensor whose rows are being written.
struct StagedTensor {
    entry: TensorEntry,
    elements: u64,
    path: PathBuf,
    /// Where its data begin in the file.
    data: u64,
    chunks: Vec<Chunk>,
}

/// Elements that were written.
struct Chunk {
    start: u64,
    elements: u64,
    hash: String,
}

impl<D: AsRef<Path>> Writer<D> {
    fn write(&mut self, batch: &RecordBatch, columns: Columns) -> Result<()> {
        let rows = Rows::try_new(batch, columns)?;
        for index in 0..batch.num_rows() {
            let row = rows.row(index)?;
            let (component, tensor) = (row.component, row.tensor);
            let name = (component.to_string(), tensor.to_string());
            self.begin(&name, &row)?;
            let Some(staged) = self.tensors.get_mut(&name) else { continue };
            let Some((offset, bytes)) = staged.place(&row).map_err(|error| error.of_tensor(component, tensor))? else {
                continue;
            };
            let path = staged.path.clone();
            let io = |e| QuantError::io(&path, e);
            if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
                let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
                self.open = Some((name, file));
            }
            if let Some((_, file)) = &mut self.open {
                file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes)).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Creates the file of a tensor with its first row; of later rows, checks that they say the same of it.
    fn begin(&mut self, name: &Name, row: &Row<'_>) -> Result<()> {
        let (component, tensor) = (row.component, row.tensor);
        if let Some(staged) = self.tensors.get(name) {
            return staged.agrees(row).map_err(|error| error.of_tensor(component, tensor));
        }
        let directory = (*self.directory).as_ref().join(component);
        let path = directory.join(format!("{}.safetensors", ContentHash::of(tensor)));
        let staged = StagedTensor::new(row, path).map_err(|error| error.of_tensor(component, tensor))?;
        fs::create_dir_all(&directory).map_err(|e| QuantError::io(&directory, e))?;
        let mut file = File::create_new(&staged.path).map_err(|e| QuantError::io(&staged.path, e))?;
        // The hash is not known yet, but its length is.
        file.write_all(&staged.header(ContentHash::of(""))?).map_err(|e| QuantError::io(&staged.path, e))?;
        self.tensors.insert(name.clone(), staged);
        self.open = Some((name.clone(), file));
        Ok(())
    }

    /// Checks that all tensors are complete, and completes their files.
    fn finish(mut self) -> Result<()> {
        self.open = None;
        let components: BTreeSet<&str> = self.tensors.keys().map(|(component, _)| component.as_str()).collect();
        if let (true, true, Some((_, tensor))) =
            (components.contains(""), components.len() > 1, self.tensors.keys().next())
        {
            return Err(RelationError::NoComponent.of_tensor("", tensor));
        }
        if components.is_empty() {
            return Err(RelationError::NoRows.of_query());
        }
        if !components.contains("") {
            let members: serde_json::Map<_, _> =
                components.iter().map(|name| (name.to_string(), serde_json::json!(["query", "weights"]))).collect();
            let path = (*self.directory).as_ref().join(PIPELINE);
            fs::write(&path, serde_json::Value::Object(members).to_string()).map_err(|e| QuantError::io(&path, e))?;
        }
        for ((component, tensor), staged) in &mut self.tensors {
            staged.check_complete().map_err(|error| error.of_tensor(component, tensor))?;
            staged.complete()?;
        }
        Ok(())
    }
}

impl StagedTensor {
    /// What the first row of a tensor says of it.
    fn new(row: &Row<'_>, path: PathBuf) -> Result<Self, RelationError> {
        if !row.component.is_empty() && !is_directory_name(row.component) {
            return Err(RelationError::ComponentName(row.component.to_string()));
        }
        let stored: StoredType = row.dtype.parse().map_err(|_| RelationError::Dtype(row.dtype.to_string()))?;
        let elements = row.elements().filter(|elements| stored.bytes(*elements).is_some());
        let elements = elements.ok_or_else(|| RelationError::Shape(row.shape.clone()))?;
        let entry = TensorEntry { name: row.tensor.to_string(), stored, shape: row.shape.clone(), range: 0..0 };
        if entry.name == safetensors::METADATA {
            return Err(RelationError::Name);
        }
        let mut staged = Self { entry, elements, path, data: 0, chunks: Vec::new() };
        // The one error that a header can have, bytes that cannot be counted, is ruled out above.
        let header = staged.header(ContentHash::of("")).map_err(|_| RelationError::Shape(row.shape.clone()))?;
        staged.data = header.len() as u64;
        Ok(staged)
    }

    /// The header of its file.
    fn header(&self, hash: String) -> Result<Vec<u8>> {
        let metadata = BTreeMap::from([(CONTENT.to_string(), hash)]);
        safetensors::write_header(&metadata, std::slice::from_ref(&self.entry), 8)
            .map_err(|error| QuantError::format(&self.path, error))
    }

    /// Checks that another row says the same of the tensor.
    fn agrees(&self, row: &Row<'_>) -> Result<(), RelationError> {
        let (stored, shape) = (self.entry.stored, &self.entry.shape);
        if *shape != row.shape {
            return Err(RelationError::TwoShapes { first: shape.clone(), second: row.shape.clone() });
        }
        if stored.name() == row.dtype {
            return Ok(());
        }
        Err(match row.dtype.parse() {
            Ok(second) => RelationError::TwoDtypes { first: stored, second },
            Err(_) => RelationError::Dtype(row.dtype.to_string()),
        })
    }

    /// Where in the file the elements of a row belong, and their bytes. `None` if it has no elements.
    fn place<'a>(&mut self, row: &'a Row<'_>) -> Result<Option<(u64, &'a [u8])>, RelationError> {
        let (stored, bytes) = (self.entry.stored, row.data.as_slice());
        let bits = i128::from(stored.bits());
        let (length, first_bit) = (bytes.len() as i128 * 8, i128::from(row.start) * bits);
        if length % bits != 0 || first_bit % 8 != 0 {
            return Err(RelationError::Bytes { bytes: bytes.len(), start: row.start, stored });
        }
        let end = i128::from(row.start) + length / bits;
        let (Ok(start), true) = (u64::try_from(row.start), end <= i128::from(self.elements)) else {
            let shape = self.entry.shape.clone();
            return Err(RelationError::Outside { start: row.start, end, shape, elements: self.elements });
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        // Below 2^63, for it is within the tensor.
        let elements = (length / bits) as u64;
        self.chunks.push(Chunk { start, elements, hash: ContentHash::of(bytes) });
        Ok(Some((self.data + (first_bit / 8) as u64, bytes)))
    }

    /// Checks that every element was written, once.
    fn check_complete(&mut self) -> Result<(), RelationError> {
        self.chunks.sort_by_key(|chunk| chunk.start);
        let mut next = 0;
        for chunk in &self.chunks {
            if chunk.start < next {
                return Err(RelationError::Overlap(chunk.start));
            }
            if chunk.start > next {
                return Err(RelationError::Missing { start: next, end: chunk.start });
            }
            next += chunk.elements;
        }
        if next < self.elements {
            return Err(RelationError::Missing { start: next, end: self.elements });
        }
        Ok(())
    }

    /// Gives the file its header and its version: with both, equal rows give a model of equal fingerprint, from which a job can
    /// be resumed. The hash is over the chunks' places and hashes, so that the data need not be read again.
    fn complete(&self) -> Result<()> {
        let mut hash = ContentHash::new();
        for chunk in &self.chunks {
            hash.update(chunk.start.to_le_bytes());
            hash.update(chunk.elements.to_le_bytes());
            hash.update(&chunk.hash);
        }
        let header = self.header(hash.finish())?;
        let io = |e| QuantError::io(&self.path, e);
        let mut file = OpenOptions::new().write(true).open(&self.path).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        Version::make_independent_of_time(&file).map_err(io)
    }
}

/// True for a name that a directory in the model's own can have; hidden directories are not looked into.
fn is_directory_name(name: &str) -> bool {
    !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}
