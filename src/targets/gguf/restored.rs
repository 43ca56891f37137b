//! The weights of a GGUF file as those of the model that it was made of: under the model's names, rows in the model's order,
//! chunk by chunk. Blocks stay blocks; functions over weights take them as they are.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewBuilder, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow_quant_formats::gguf::{Place, Rows, TensorType};
use arrow_quant_formats::manifest::Omission;
use arrow_quant_kernels::{Encoding, Isa, Weights, to_f32};
use arrow_quant_udfs::tensor_value;
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;

use super::GgufFile;
use crate::model::gguf_header_at;
use crate::tables::{Chunk, ModelParts, weights_schema};
use crate::workers::blocking;
use crate::{Model, QuantError, Result, Tensor};

/// Chunks of a batch.
const BATCH: usize = 16;

/// The columns of the table, by their places among those of `weights`: component, tensor, chunk and weights.
const COLUMNS: [usize; 4] = [1, 2, 4, 6];

/// A file, and where it has the tensors of a model.
#[derive(Debug)]
struct Source {
    model: Arc<Model>,
    path: PathBuf,
    /// Of each tensor of the model, where it is; `None` if the file does not have it.
    pieces: Vec<Option<Piece>>,
}

/// Where the file has a tensor of the model.
#[derive(Debug, Clone)]
struct Piece {
    kind: TensorType,
    range: Range<u64>,
    /// Weights of a row: of all that is under one index of the first axis.
    row: u64,
    /// Rows.
    rows: u64,
    /// Their order in the file.
    order: Rows,
    /// Whether 1 was added to the weights.
    adds_one: bool,
}

/// The table of the weights of a file that was made of a model.
///
/// # Errors
/// If the file cannot be read, or does not hold the model's tensors.
pub(super) fn table(layout: &GgufFile, model: &Arc<Model>, path: &Path) -> Result<Arc<dyn TableProvider>> {
    let header = gguf_header_at(path)?;
    let mut pieces = vec![None; model.tensors().len()];
    for place in &layout.places {
        let found = header.tensors.iter().find(|tensor| tensor.name == place.name && tensor.shape == place.shape);
        let found = found.ok_or_else(|| {
            let message =
                format!("{}: there is no tensor {} of the shape {:?}", path.display(), place.name, place.shape);
            QuantError::configuration(message).at(path)
        })?;
        let mut start = found.range.start;
        for source in &place.sources {
            let tensor = &model.tensors()[*source];
            let piece = piece(place, found.kind, start, tensor);
            start = piece.range.end;
            pieces[*source] = Some(piece);
        }
    }
    let embedding = layout.places.iter().find(|place| place.name == "token_embd.weight");
    for (tied, _) in layout.left_out.iter().filter(|(_, why)| *why == Omission::Tied) {
        pieces[*tied] = embedding.and_then(|place| pieces[place.sources[0]].clone());
    }
    let parts = ModelParts::new(model, |tensor| pieces[tensor].is_some());
    let source = Arc::new(Source { model: Arc::clone(model), path: path.to_path_buf(), pieces });
    let schema = Arc::new(weights_schema().project(&COLUMNS)?);
    let streams = parts.iter().map(|chunks| {
        let (parts, chunks) = (parts.clone(), chunks.clone());
        Arc::new(Part { schema: Arc::clone(&schema), source: Arc::clone(&source), parts, chunks })
            as Arc<dyn PartitionStream>
    });
    Ok(Arc::new(StreamingTable::try_new(Arc::clone(&schema), streams.collect())?))
}

/// The part of a tensor of the file that a tensor of the model is, and where it begins.
fn piece(place: &Place, kind: TensorType, start: u64, tensor: &Tensor) -> Piece {
    let rows = tensor.shape.first().map_or(1, |rows| rows.unsigned_abs()).max(1);
    let (weights, bytes) = kind.block();
    Piece {
        kind,
        range: start..start + tensor.elements() / weights * bytes,
        row: tensor.elements() / rows,
        rows,
        order: place.rows,
        adds_one: place.adds_one,
    }
}

/// A run of chunks.
#[derive(Debug)]
struct Part {
    schema: SchemaRef,
    source: Arc<Source>,
    parts: ModelParts,
    chunks: Range<usize>,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, source, parts) = (Arc::clone(&self.schema), Arc::clone(&self.source), self.parts.clone());
        let batches = futures::stream::unfold(self.chunks.clone(), move |rest| {
            let (schema, source, parts) = (Arc::clone(&schema), Arc::clone(&source), parts.clone());
            async move {
                if rest.is_empty() {
                    return None;
                }
                let end = rest.end.min(rest.start + BATCH);
                let (taken, rest) = (rest.start..end, end..rest.end);
                let batch = blocking(move || source.batch(schema, &parts.all_chunks()[taken])).await;
                Some((batch.map_err(DataFusionError::from), rest))
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

impl Source {
    fn batch(&self, schema: SchemaRef, chunks: &[Chunk]) -> Result<RecordBatch> {
        let mut file = File::open(&self.path).map_err(|e| QuantError::io(&self.path, e))?;
        let (mut data, mut dtypes) = (BinaryViewBuilder::with_capacity(chunks.len()), Vec::with_capacity(chunks.len()));
        for chunk in chunks {
            let tensor = &self.model.tensors()[chunk.tensor];
            let Some(piece) = &self.pieces[chunk.tensor] else {
                return Err(QuantError::configuration(format!("{}: {tensor} is not in it", self.path.display())));
            };
            let bytes = piece.read(&mut file, chunk).map_err(|e| QuantError::io(&self.path, e))?;
            let (name, bytes) = piece.named(bytes)?;
            dtypes.push(name);
            // Views hold values of at most 12 bytes themselves.
            if bytes.len() <= 12 {
                data.append_value(&bytes);
            } else {
                let length = bytes.len() as u32;
                let block = data.append_block(Buffer::from(bytes));
                data.try_append_view(block, 0, length)?;
            }
        }
        let rows = Int64Array::from_iter_values(chunks.iter().map(|chunk| chunk.row_length as i64));
        let dtypes = StringArray::from_iter_values(dtypes);
        let weights = tensor_value(Arc::new(dtypes), Arc::new(rows), Arc::new(data.finish()), None);
        let tensors = chunks.iter().map(|chunk| &self.model.tensors()[chunk.tensor]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(tensors.clone().map(|tensor| &tensor.component))),
            Arc::new(StringArray::from_iter_values(tensors.map(|tensor| &tensor.name))),
            Arc::new(Int32Array::from_iter_values(chunks.iter().map(|chunk| chunk.number))),
            Arc::new(weights),
        ];
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

impl Piece {
    /// Where a row of the model is in the file.
    fn row_in_file(&self, row: u64) -> u64 {
        match self.order {
            Rows::AsTheyAre => row,
            Rows::HalvesSwapped => (row + self.rows / 2) % self.rows,
            Rows::Turned { heads } => {
                let head = self.rows / u64::from(heads);
                let (first, within) = (row / head * head, row % head);
                first + if within < head / 2 { 2 * within } else { 2 * (within - head / 2) + 1 }
            }
        }
    }

    /// The bytes of a chunk, its rows in the order of the model.
    fn read(&self, file: &mut File, chunk: &Chunk) -> std::io::Result<Vec<u8>> {
        let (weights, bytes) = self.kind.block();
        let bytes_of = |elements: u64| elements / weights * bytes;
        let mut read = |start: u64, elements: u64, out: &mut Vec<u8>| {
            file.seek(SeekFrom::Start(self.range.start + bytes_of(start)))?;
            let from = out.len();
            out.resize(from + bytes_of(elements) as usize, 0);
            file.read_exact(&mut out[from..])
        };
        let mut out = Vec::with_capacity(bytes_of(chunk.elements) as usize);
        if self.order == Rows::AsTheyAre {
            read(chunk.start, chunk.elements, &mut out)?;
            return Ok(out);
        }
        // Of a row that is cut into chunks, the part that is in this one.
        let (mut start, end) = (chunk.start, chunk.start + chunk.elements);
        while start < end {
            let (row, within) = (start / self.row.max(1), start % self.row.max(1));
            let taken = (self.row - within).min(end - start);
            read(self.row_in_file(row) * self.row + within, taken, &mut out)?;
            start += taken;
        }
        Ok(out)
    }

    /// The name of the type, and the weights as they were before 1 was added.
    fn named(&self, bytes: Vec<u8>) -> Result<(&'static str, Vec<u8>)> {
        let name = self.kind.block_type().map_or(self.kind.name(), |block_type| block_type.name());
        if !self.adds_one {
            return Ok((name, bytes));
        }
        let Encoding::Float(dtype) = Encoding::parse(name, None)? else { return Ok((name, bytes)) };
        let values = to_f32(Isa::active()?, Weights::one_row(dtype, &bytes)?);
        Ok(("F32", values.into_iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect()))
    }
}
