//! The file, from the files of parts.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

use arrow_quant_formats::gguf::language::{Extra, Place};
use arrow_quant_formats::gguf::{ALIGNMENT, NewTensor, TensorType, Written, write_header};
use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::{Dtype, Isa, Weights, to_f32};

use super::{FILE, LanguageFile};
use crate::plan::{Choice, ModelPlan};
use crate::targets::hashed::HashedFile;
use crate::targets::stored::{Stop, Stored, cast};
use crate::targets::{WrittenPart, defect};
use crate::{QuantError, Result};

/// Bytes that are copied at once; a head whose rows are reordered is held as a whole.
const PIECE: u64 = 1 << 20;

/// A tensor of the file.
enum Item<'a> {
    Place(&'a Place),
    Extra(&'a Extra),
}

/// Writes the file of a model whose parts are written.
pub(super) fn write(
    layout: &LanguageFile,
    output: &Path,
    parts: Vec<WrittenPart>,
    plan: &ModelPlan,
) -> Result<FileEntry> {
    let stored = Source { stored: Stored::open(output, &parts, plan)?, cast: layout.cast };
    let mut items: Vec<_> = layout.language.places.iter().map(Item::Place).collect();
    items.extend(layout.language.extra.iter().map(Item::Extra));
    // Those of no block come first, by their names.
    items.sort_by_key(|item| {
        match item {
            Item::Place(place) if place.name.starts_with("blk.") => None,
            Item::Place(place) => Some(place.name.clone()),
            Item::Extra(extra) => Some(extra.name.clone()),
        }
        .map_or((1, String::new()), |name| (0, name))
    });
    let tensors = items.iter().map(|item| stored.new_tensor(item)).collect::<Result<Vec<_>>>()?;
    let file_type = layout.file_type.unwrap_or_else(|| file_type(&tensors));
    let Written { header, bytes, length, .. } =
        write_header(&layout.metadata(file_type), &tensors).ok_or_else(|| defect("the file would be too large"))?;
    let path = output.join(FILE);
    let mut file = HashedFile::create(&path)?;
    let io = |e| QuantError::io(&path, e);
    file.write_all(&header).map_err(io)?;
    for ((item, tensor), bytes) in items.iter().zip(&tensors).zip(bytes) {
        let start = file.bytes();
        match item {
            Item::Place(place) => stored.copy(place, tensor.kind, &mut file).map_err(|e| e.at(&path))?,
            Item::Extra(extra) => {
                let values: Vec<u8> = extra.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                file.write_all(&values).map_err(io)?;
            }
        }
        if file.bytes() - start != bytes {
            return Err(defect(&format!("{} has {} bytes, expected {bytes}", tensor.name, file.bytes() - start)));
        }
        let padding = file.bytes().next_multiple_of(ALIGNMENT) - file.bytes();
        file.write_all(&[0; ALIGNMENT as usize][..padding as usize]).map_err(io)?;
    }
    if file.bytes() != length {
        return Err(defect(&format!("the file has {} bytes, expected {length}", file.bytes())));
    }
    file.finish(&path, FILE.to_string())
}

/// The kind of file, by the type that most weights have.
fn file_type(tensors: &[NewTensor]) -> u32 {
    let mut weights: HashMap<TensorType, u64> = HashMap::new();
    for tensor in tensors {
        *weights.entry(tensor.kind).or_default() += arrow_quant_formats::elements(&tensor.shape);
    }
    let most = weights.into_iter().max_by_key(|(kind, weights)| (*weights, kind.number()));
    most.map_or(0, |(kind, _)| kind.file_type())
}

/// The tensors of a file, from what is stored.
struct Source<'a> {
    stored: Stored<'a>,
    /// What all weights become that are not quantized, if that was asked for.
    cast: Option<Dtype>,
}

impl Source<'_> {
    /// A tensor as the header has it.
    fn new_tensor(&self, item: &Item<'_>) -> Result<NewTensor> {
        match item {
            Item::Extra(Extra { name, values }) => {
                Ok(NewTensor { name: name.clone(), shape: vec![values.len() as i64], kind: TensorType::F32 })
            }
            Item::Place(place) => {
                let kind = self.kind(place, place.sources[0])?;
                for source in &place.sources {
                    let other = self.kind(place, *source)?;
                    if other != kind {
                        let message = format!(
                            "{} would be of {kind} and {other}: of experts all must become the same, and some fell back; set \
                             min_accuracy lower, or choose another type",
                            place.name
                        );
                        return Err(QuantError::Quantization { tensor: Some(place.name.clone()), message });
                    }
                }
                Ok(NewTensor { name: place.name.clone(), shape: place.shape.clone(), kind })
            }
        }
    }

    /// The type that a tensor of the model has in a place.
    fn kind(&self, place: &Place, source: usize) -> Result<TensorType> {
        match self.stored.choice(source) {
            Some(Choice::Block(block_type)) => Ok(block_type.into()),
            Some(Choice::Grouped { .. }) => Err(defect(&format!("{} is of grouped integers", place.name))),
            None if place.is_f32 => Ok(TensorType::F32),
            None if self.cast.is_some() => Ok(self.cast.unwrap_or(Dtype::F32).into()),
            None => match self.stored.dtype(self.stored.first(source))? {
                // llama.cpp does not compute with it.
                Dtype::F64 => Ok(TensorType::F32),
                dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16) => Ok(dtype.into()),
            },
        }
    }

    /// Writes the tensors of a place.
    fn copy(&self, place: &Place, kind: TensorType, out: &mut HashedFile) -> Result<(), Stop> {
        for source in &place.sources {
            let first = self.stored.first(*source);
            let extents = &self.stored.places(first).codes;
            let length: u64 = extents.iter().map(|extent| extent.length).sum();
            let rows = self.stored.tensor(first).shape.first().map_or(1, |rows| rows.unsigned_abs());
            let mut bytes = self.stored.read(extents);
            let kept = match self.stored.choice(first) {
                Some(_) => None,
                None => Some(self.stored.dtype(first)?),
            };
            // Of cast elements a piece ends between two.
            let piece = place.turned_heads.map_or(PIECE, |heads| length / u64::from(heads));
            let mut left = length;
            let mut buffer = Vec::new();
            while left > 0 {
                let taken = piece.min(left).max(1);
                buffer.resize(taken as usize, 0);
                bytes.read_exact(&mut buffer)?;
                left -= taken;
                if let Some(heads) = place.turned_heads {
                    buffer = turned(&buffer, (length / rows) as usize, (rows / u64::from(heads)) as usize);
                }
                match kept {
                    Some(dtype) if place.adds_one => out.write_all(&add_one(&buffer, dtype)?)?,
                    Some(dtype) if TensorType::from(dtype) != kind => {
                        out.write_all(&cast(&buffer, dtype, self.cast.filter(|_| !place.is_f32).unwrap_or(Dtype::F32))?)?;
                    }
                    Some(_) | None => out.write_all(&buffer)?,
                }
            }
        }
        Ok(())
    }
}

/// The rows of a head in GGUF's order: one of the first half, then the one as far into the second half.
fn turned(head: &[u8], row: usize, rows: usize) -> Vec<u8> {
    let at = |index: usize| &head[index * row..(index + 1) * row];
    (0..rows / 2).flat_map(|pair| [at(pair), at(rows / 2 + pair)]).flatten().copied().collect()
}

/// Elements as F32, with one added.
fn add_one(elements: &[u8], dtype: Dtype) -> Result<Vec<u8>> {
    let values = to_f32(Isa::active()?, Weights::one_row(dtype, elements)?);
    Ok(values.into_iter().flat_map(|value| (value + 1.0).to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_paired() {
        assert_eq!(turned(&[0, 0, 1, 1, 2, 2, 3, 3], 2, 4), [0, 0, 2, 2, 1, 1, 3, 3]);
    }
}
