//! Second moments of the inputs of a model's layers: a Parquet file beside the calibration table. `docs/calibration.md` has its
//! columns.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Int64Type};
use arrow_quant_formats::ContentHash;
use arrow_quant_kernels::{Factor, Isa, KernelError, MomentBlock};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};

use super::unknown_tensor;
use crate::tables::LIMIT;
use crate::{Model, QuantError, Result, Tensor};

/// What the name of the file ends with, in place of the extension of the calibration table.
const EXTENSION: &str = "moments.parquet";

/// The column of the sums themselves, which is read for one input at a time.
const GRAM: &str = "gram";

/// The file of second moments beside a calibration table.
pub(crate) fn beside(calibration: &Path) -> PathBuf {
    calibration.with_extension(EXTENSION)
}

/// A file of second moments. What it holds is read input by input.
#[derive(Debug)]
pub(crate) struct Moments {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    inputs: Vec<Input>,
}

/// The second moments of one input, over all timesteps.
#[derive(Debug)]
pub(crate) struct Input {
    pub name: String,
    /// The weights that it is multiplied with: `component/tensor` in a pipeline.
    pub tensors: Vec<String>,
    pub channels: usize,
    /// Samples that were measured, of all timesteps together.
    pub samples: i64,
    /// Channels of each diagonal block, in order.
    pub blocks: Vec<usize>,
    /// Its rows in the file.
    rows: Vec<Place>,
}

/// Where a row is, and what it is of.
#[derive(Debug, Clone, Copy)]
struct Place {
    row_group: usize,
    row: usize,
    timestep: i64,
    samples: i64,
    start: usize,
    size: usize,
}

/// Σ x xᵀ of an input: the upper triangle of each diagonal block.
#[derive(Debug)]
pub(crate) struct Triangles(Vec<(usize, Vec<f32>)>);

impl Triangles {
    /// A hash of the sums.
    pub(crate) fn hash(&self) -> String {
        let mut hash = ContentHash::new();
        for (size, triangle) in &self.0 {
            hash.update(size.to_le_bytes());
            for piece in triangle.chunks(1 << 14) {
                hash.update(piece.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        hash.finish()[..16].to_string()
    }

    /// The factor for feedback.
    ///
    /// # Errors
    /// If they cannot be factored with so much damping.
    pub(crate) fn factor(&self, isa: Isa, damping: f32) -> Result<Factor, KernelError> {
        let blocks: Vec<_> = self.0.iter().map(|(size, triangle)| MomentBlock { size: *size, triangle }).collect();
        Factor::new(isa, &blocks, damping)
    }
}

impl Moments {
    /// Opens a file, and checks all but the sums.
    ///
    /// # Errors
    /// If it cannot be read, lacks a column, or its rows contradict each other.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| QuantError::io(path, e))?;
        let metadata = ArrowReaderMetadata::load(&file, Default::default()).map_err(|e| unreadable(path, &e))?;
        let mut inputs: Vec<Input> = Vec::new();
        let mut index: HashMap<String, usize> = HashMap::new();
        for row_group in 0..metadata.metadata().num_row_groups() {
            let mut row = 0;
            for batch in read(path, &metadata, row_group, None)? {
                let columns = Columns::of(path, &batch?)?;
                for at in 0..columns.input.len() {
                    let name = columns.input.value(at).to_string();
                    let found = *index.entry(name.clone()).or_insert(inputs.len());
                    if found == inputs.len() {
                        inputs.push(columns.input(path, name, at)?);
                    }
                    let place = columns.place(path, &inputs[found], at, (row_group, row))?;
                    inputs[found].rows.push(place);
                    row += 1;
                }
            }
        }
        if inputs.is_empty() {
            return Err(QuantError::defect(path, None, "it has no rows"));
        }
        for input in &mut inputs {
            input.settle(path)?;
        }
        Ok(Self { path: path.to_path_buf(), metadata, inputs })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The input of a name.
    pub(crate) fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// The tensors of each input, by index in the model.
    ///
    /// # Errors
    /// If a tensor is not the model's, has rows of another length, or belongs to two inputs.
    pub(crate) fn tensors(&self, model: &Model) -> Result<Vec<Vec<usize>>> {
        let names: Vec<String> = model.tensors().iter().map(Tensor::full_name).collect();
        let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let mut input_of: HashMap<usize, &str> = HashMap::new();
        let mut all = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let mut found = Vec::with_capacity(input.tensors.len());
            for name in &input.tensors {
                let refused = |what: String| {
                    let what = format!("the second moments of {} are of it, {what}", input.name);
                    QuantError::defect(&self.path, Some(name.clone()), what)
                };
                let Some(&tensor) = index.get(name.as_str()) else {
                    return Err(refused(unknown_tensor(name, &names)));
                };
                let row_length = model.tensors()[tensor].row_length();
                if row_length != input.channels as u64 {
                    let channels = input.channels;
                    return Err(refused(format!("with {channels} channels; its rows have {row_length} weights")));
                }
                if let Some(other) = input_of.insert(tensor, &input.name) {
                    return Err(refused(format!("and so are those of {other}, expected one input for each tensor")));
                }
                found.push(tensor);
            }
            all.push(found);
        }
        Ok(all)
    }

    /// The sums of an input, those of all timesteps together.
    ///
    /// # Errors
    /// If they cannot be read, or are not triangles of the blocks.
    pub(crate) fn triangles(&self, input: &Input) -> Result<Triangles> {
        let (mut blocks, mut start) = (HashMap::new(), 0);
        for (at, size) in input.blocks.iter().enumerate() {
            blocks.insert(start, at);
            start += size;
        }
        let mut triangles: Vec<(usize, Vec<f32>)> = input.blocks.iter().map(|size| (*size, Vec::new())).collect();
        let mut rows = input.rows.iter().peekable();
        while let Some(first) = rows.peek() {
            let row_group = first.row_group;
            let of_group: Vec<&Place> =
                std::iter::from_fn(|| rows.next_if(|place| place.row_group == row_group)).collect();
            let mut places = of_group.iter();
            for batch in read(&self.path, &self.metadata, row_group, Some(&of_group))? {
                let lists = floats(&self.path, &batch?)?;
                for at in 0..lists.len() {
                    let Some(place) = places.next() else { break };
                    let list = lists.as_list::<i32>().value(at);
                    let sums = list.as_primitive::<Float32Type>().values();
                    let expected = place.size * (place.size + 1) / 2;
                    if sums.len() != expected || list.null_count() > 0 {
                        let what = format!(
                            "{}: {GRAM} of {} channels has {} numbers, expected {expected}, the upper triangle row by row",
                            input.name,
                            place.size,
                            sums.len() - list.null_count()
                        );
                        return Err(QuantError::defect(&self.path, None, what));
                    }
                    let (_, triangle) = &mut triangles[blocks[&place.start]];
                    if triangle.is_empty() {
                        triangle.extend_from_slice(sums);
                    } else {
                        triangle.iter_mut().zip(sums).for_each(|(sum, of_row)| *sum += of_row);
                    }
                }
            }
        }
        Ok(Triangles(triangles))
    }
}

impl Input {
    /// Bytes that its moments take in memory while they are factored.
    pub(crate) fn bytes(&self) -> u64 {
        // The sums, and the triangles of the factorization and of the factor.
        3 * self.factor_bytes()
    }

    /// Bytes of its factor.
    pub(crate) fn factor_bytes(&self) -> u64 {
        self.blocks.iter().map(|&size| 2 * (size * (size + 1)) as u64).sum()
    }

    /// Finds blocks and samples, and checks that every timestep has all blocks once.
    fn settle(&mut self, path: &Path) -> Result<()> {
        let refused = |what: String| QuantError::defect(path, None, format!("the input {} {what}", self.name));
        let mut in_order: Vec<&Place> = self.rows.iter().collect();
        in_order.sort_by_key(|place| (place.timestep, place.start));
        let mut blocks: Vec<usize> = Vec::new();
        let (mut samples, mut first) = (0, true);
        for of_step in in_order.chunk_by(|a, b| a.timestep == b.timestep) {
            let mut next = 0;
            for place in of_step {
                if place.start != next {
                    let (timestep, start) = (place.timestep, place.start);
                    return Err(refused(format!(
                        "has a block from channel {start} on at timestep {timestep}, expected one from {next} on"
                    )));
                }
                next += place.size;
            }
            if next != self.channels {
                return Err(refused(format!("has blocks of {next} of its {} channels", self.channels)));
            }
            let sizes: Vec<usize> = of_step.iter().map(|place| place.size).collect();
            if !first && sizes != blocks {
                return Err(refused("has blocks of other sizes at other timesteps".to_string()));
            }
            (blocks, first) = (sizes, false);
            samples = i64::saturating_add(samples, of_step[0].samples);
        }
        (self.blocks, self.samples) = (blocks, samples);
        Ok(())
    }
}

/// The columns of a batch, the sums left out.
struct Columns {
    input: StringArray,
    tensors: ArrayRef,
    timestep: Int64Array,
    samples: Int64Array,
    channels: Int64Array,
    start: Int64Array,
    size: Int64Array,
}

impl Columns {
    fn of(path: &Path, batch: &RecordBatch) -> Result<Self> {
        let column = |name: &str, wanted: &DataType| -> Result<ArrayRef> {
            let found = batch.column_by_name(name).ok_or_else(|| {
                let expected = "input, tensors, timestep, samples, channels, start, size and gram";
                QuantError::defect(path, None, format!("it has no column {name}; expected {expected}"))
            })?;
            let fits = cast(found, wanted).ok().filter(|fits| fits.null_count() == 0);
            fits.ok_or_else(|| {
                let what = format!("the column {name} is {}, expected {wanted} without NULLs", found.data_type());
                QuantError::defect(path, None, what)
            })
        };
        let names = DataType::List(Field::new("item", DataType::Utf8, true).into());
        let number =
            |name: &str| Ok::<_, QuantError>(column(name, &DataType::Int64)?.as_primitive::<Int64Type>().clone());
        Ok(Self {
            input: column("input", &DataType::Utf8)?.as_string().clone(),
            tensors: column("tensors", &names)?,
            timestep: number("timestep")?,
            samples: number("samples")?,
            channels: number("channels")?,
            start: number("start")?,
            size: number("size")?,
        })
    }

    /// An input that is met for the first time.
    fn input(&self, path: &Path, name: String, at: usize) -> Result<Input> {
        let tensors = self.tensors_at(at);
        match usize::try_from(self.channels.value(at)) {
            // A longer row is cut into chunks, and feedback goes along whole rows.
            Ok(channels) if (1..=LIMIT).contains(&(channels as u64)) => {
                Ok(Input { name, tensors, channels, samples: 0, blocks: Vec::new(), rows: Vec::new() })
            }
            _ => {
                let what = format!("the input {name} has {} channels, allowed: 1 to {LIMIT}", self.channels.value(at));
                Err(QuantError::defect(path, None, what))
            }
        }
    }

    fn tensors_at(&self, at: usize) -> Vec<String> {
        let tensors = self.tensors.as_list::<i32>().value(at);
        tensors.as_string::<i32>().iter().flatten().map(str::to_string).collect()
    }

    /// Where a row is, and what it is of.
    fn place(&self, path: &Path, input: &Input, at: usize, (row_group, row): (usize, usize)) -> Result<Place> {
        let [channels, start, size] = [&self.channels, &self.start, &self.size].map(|column| column.value(at));
        let samples = self.samples.value(at);
        let most = input.channels as i64;
        let is_block = size >= 1 && (0..most).contains(&start) && size <= most - start;
        if channels != most || !is_block || samples < 1 {
            let what = format!(
                "the input {} has a row of {channels} channels, start {start}, size {size} and {samples} samples, which \
                 contradict each other or the {most} channels of its first row",
                input.name
            );
            return Err(QuantError::defect(path, None, what));
        }
        if self.tensors_at(at) != input.tensors {
            let what = format!("the input {} has other tensors in another row, expected the same in all", input.name);
            return Err(QuantError::defect(path, None, what));
        }
        let (start, size) = (start as usize, size as usize);
        Ok(Place { row_group, row, timestep: self.timestep.value(at), samples, start, size })
    }
}

/// Batches of a row group: all columns but the sums, or of some rows, which are in order, the sums alone and one by one.
fn read<'a>(
    path: &'a Path,
    metadata: &ArrowReaderMetadata,
    row_group: usize,
    sums_of: Option<&[&Place]>,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + 'a> {
    let file = File::open(path).map_err(|e| QuantError::io(path, e))?;
    let roots = metadata.schema().fields().iter().enumerate();
    let roots = roots.filter(|(_, field)| (field.name() == GRAM) == sums_of.is_some()).map(|(at, _)| at);
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
        .with_row_groups(vec![row_group])
        .with_projection(mask);
    if let Some(places) = sums_of {
        let mut selectors = Vec::new();
        let mut next = 0;
        for place in places {
            selectors.extend([RowSelector::skip(place.row - next), RowSelector::select(1)]);
            next = place.row + 1;
        }
        builder = builder.with_batch_size(1).with_row_selection(RowSelection::from(selectors));
    }
    let reader = builder.build().map_err(|e| unreadable(path, &e))?;
    Ok(reader.map(move |batch| batch.map_err(|e| unreadable(path, &e))))
}

/// The sums of a batch.
fn floats(path: &Path, batch: &RecordBatch) -> Result<ArrayRef> {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Float32, true)));
    let found = batch.column_by_name(GRAM);
    let fits = found.and_then(|found| cast(found, &list).ok()).filter(|fits| fits.null_count() == 0);
    fits.ok_or_else(|| {
        QuantError::defect(path, None, format!("it has no column {GRAM} of lists of numbers without NULLs"))
    })
}

fn unreadable(path: &Path, error: &impl std::fmt::Display) -> QuantError {
    QuantError::defect(path, None, format!("not a table of second moments: {error}"))
}
