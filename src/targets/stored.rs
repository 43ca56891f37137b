//! What the files of parts hold of each tensor, for the targets whose files are assembled from them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::{Dtype, Isa, ParameterDtype, Weights, group_count, to_f32};
use half::{bf16, f16};

use super::defect;
use super::raw::tag;
use crate::plan::{Choice, ModelPlan};
use crate::tables::{Chunk, ModelParts};
use crate::{QuantError, Result, Tensor};

/// The files of the parts of a model, and where each tensor is in them.
pub(super) struct Stored<'a> {
    plan: &'a ModelPlan,
    files: Vec<File>,
    /// Of each tensor of the model, in its order.
    places: Vec<Places>,
}

/// Where the parts of a tensor are, each in the order of its chunks.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Elements that are kept, blocks, or codes.
    pub codes: Vec<Extent>,
    pub scales: Vec<Extent>,
    pub minima: Vec<Extent>,
    pub zero_points: Vec<Extent>,
}

/// A run of bytes in the file of a part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    file: usize,
    start: u64,
    pub length: u64,
    /// The type of what it holds, if it holds parameters.
    pub dtype: ParameterDtype,
}

impl Extent {
    /// The first so many bytes, and the others.
    pub(super) fn split(self, at: u64) -> (Self, Self) {
        (Self { length: at, ..self }, Self { start: self.start + at, length: self.length - at, ..self })
    }
}

/// Bytes of a chunk, in the order in which they are written.
struct Lengths {
    codes: u64,
    /// Groups, if it has any.
    groups: Option<u64>,
}

impl<'a> Stored<'a> {
    /// Finds the tensors of a model in the files of its parts, which are in order.
    ///
    /// # Errors
    /// If a file cannot be read, or is not of the plan.
    pub(super) fn open(output: &Path, parts: &[FileEntry], plan: &'a ModelPlan) -> Result<Self> {
        let tensors = plan.model.tensors();
        let chunks = ModelParts::new(&plan.model, |tensor| plan.tensors[tensor].same_as.is_none());
        if chunks.iter().len() != parts.len() {
            return Err(defect(&format!("there are {} parts, expected {}", parts.len(), chunks.iter().len())));
        }
        let mut places: Vec<Places> = tensors.iter().map(|_| Places::default()).collect();
        let mut files = Vec::with_capacity(parts.len());
        for (number, (part, run)) in parts.iter().zip(chunks.iter()).enumerate() {
            let path = output.join(&part.path);
            let file = File::open(&path).map_err(|e| QuantError::io(&path, e))?;
            let mut start = 0;
            for chunk in &chunks.all_chunks()[run.clone()] {
                let place = &mut places[chunk.tensor];
                let Lengths { codes, groups } = lengths(plan, chunk)?;
                let Some(groups) = groups else {
                    place.codes.push(Extent { file: number, start, length: codes, dtype: ParameterDtype::F32 });
                    start += codes;
                    continue;
                };
                let mut first = [0];
                read_exact_at(&file, &mut first, start).map_err(|e| QuantError::io(&path, e))?;
                start += 1;
                let mut add = |extents: &mut Vec<Extent>, length: u64, dtype: ParameterDtype| {
                    extents.push(Extent { file: number, start, length, dtype });
                    start += length;
                };
                let known = ParameterDtype::ALL.iter().copied().find(|dtype| [tag(*dtype)] == first);
                let dtype = known.ok_or_else(|| defect(&format!("{} is not of the plan", path.display())))?;
                let bytes = groups * dtype.size() as u64;
                add(&mut place.codes, codes, dtype);
                add(&mut place.scales, bytes, dtype);
                if plan.settings.scheme.has_minima() {
                    add(&mut place.minima, bytes, dtype);
                }
                if plan.settings.scheme.has_zero_points() {
                    add(&mut place.zero_points, groups, dtype);
                }
            }
            if start != part.bytes {
                return Err(defect(&format!("{} has {} bytes, expected {start}", path.display(), part.bytes)));
            }
            files.push(file);
        }
        Ok(Self { plan, files, places })
    }

    /// The index of the tensor whose bytes stand for those of another, which may be itself.
    pub(super) fn first(&self, tensor: usize) -> usize {
        self.plan.tensors[tensor].same_as.unwrap_or(tensor)
    }

    /// What a tensor became.
    pub(super) fn choice(&self, tensor: usize) -> Option<Choice> {
        self.plan.tensors[self.first(tensor)].choice
    }

    /// A tensor of the model.
    pub(super) fn tensor(&self, index: usize) -> &Tensor {
        &self.plan.model.tensors()[index]
    }

    /// The type of the elements of a tensor that is kept.
    pub(super) fn dtype(&self, index: usize) -> Result<Dtype> {
        let tensor = self.tensor(index);
        tensor.float_dtype().ok_or_else(|| defect(&format!("{} is of {}", tensor.name, tensor.dtype())))
    }

    /// Where the parts of a tensor are.
    pub(super) fn places(&self, tensor: usize) -> &Places {
        &self.places[self.first(tensor)]
    }

    /// The bytes of some extents, one after the other.
    pub(super) fn read<'b>(&'b self, extents: &'b [Extent]) -> Bytes<'b> {
        Bytes { files: &self.files, extents: extents.iter(), rest: None }
    }
}

/// Bytes of the parts of a chunk.
fn lengths(plan: &ModelPlan, chunk: &Chunk) -> Result<Lengths> {
    let tensor = &plan.model.tensors()[chunk.tensor];
    match plan.tensors[chunk.tensor].choice {
        None => Ok(Lengths { codes: tensor.stored_bytes(chunk.elements), groups: None }),
        Some(choice @ Choice::Block(_)) => {
            let bytes =
                choice.encoding(plan.settings.scheme).stored_bytes(chunk.elements as usize, chunk.row_length as usize);
            Ok(Lengths { codes: bytes? as u64, groups: None })
        }
        Some(Choice::Grouped { bits, group_size }) => {
            let groups = group_count(chunk.elements as usize, chunk.row_length as usize, group_size) as u64;
            Ok(Lengths { codes: bits.packed_len(chunk.elements as usize) as u64, groups: Some(groups) })
        }
    }
}

/// The bytes of extents.
pub(super) struct Bytes<'a> {
    files: &'a [File],
    extents: std::slice::Iter<'a, Extent>,
    /// What is left of the extent that is read.
    rest: Option<Extent>,
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.rest.filter(|extent| extent.length > 0);
        let Some(extent) = rest.or_else(|| self.extents.find(|extent| extent.length > 0).copied()) else {
            return Ok(0);
        };
        let wanted = extent.length.min(buffer.len() as u64) as usize;
        read_exact_at(&self.files[extent.file], &mut buffer[..wanted], extent.start)?;
        let read = wanted as u64;
        self.rest = Some(Extent { start: extent.start + read, length: extent.length - read, ..extent });
        Ok(wanted)
    }
}

fn read_exact_at(mut file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
    file.read_exact(buffer)
}

/// Why copying from one file to another ended.
pub(super) enum Stop {
    Io(io::Error),
    Other(QuantError),
}

impl Stop {
    /// The error, of the file that was written.
    pub(super) fn at(self, path: &Path) -> QuantError {
        match self {
            Self::Io(error) => QuantError::io(path, error),
            Self::Other(error) => error,
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<QuantError> for Stop {
    fn from(error: QuantError) -> Self {
        Self::Other(error)
    }
}

/// Elements of another type, each rounded to the nearest, of two equally near to the even one.
///
/// # Errors
/// If one is finite and beyond the range of the type.
pub(super) fn cast(tensor: &str, bytes: &[u8], from: Dtype, to: Dtype) -> Result<Vec<u8>> {
    let values = to_f32(Isa::active()?, Weights::one_row(from, bytes)?);
    let limit = match to {
        Dtype::F64 | Dtype::F32 => f32::INFINITY,
        // Halfway to the number that would come next.
        Dtype::F16 => 65520.0,
        Dtype::BF16 => f32::from_bits(0x7f7f_8000),
    };
    if let Some(value) = values.iter().find(|value| value.is_finite() && value.abs() >= limit) {
        let message = format!("{tensor}: a weight is {value}, which {to} cannot hold: choose the type f32 or bf16");
        return Err(QuantError::Quantization { tensor: Some(tensor.to_string()), message });
    }
    let values = values.into_iter();
    Ok(match to {
        Dtype::F64 => values.flat_map(|value| f64::from(value).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
    })
}
