//! The file, from the files of parts.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

use arrow_quant_formats::gguf::{ALIGNMENT, Extra, Holds, NewTensor, Place, Rows, TensorType, Written, write_header};
use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::{Dtype, Isa, Weights, to_f32};

use super::{FILE, GgufFile};
use crate::plan::{Choice, ModelPlan};
use crate::targets::defect;
use crate::targets::hashed::HashedFile;
use crate::targets::stored::{Extent, Stop, Stored, cast};
use crate::{QuantError, Result};

/// Bytes that are copied at once; a head whose rows are reordered is held as a whole.
const PIECE: u64 = 1 << 20;

/// A tensor of the file.
enum Item<'a> {
    Place(&'a Place),
    Extra(&'a Extra),
}

/// Writes the file of a model whose parts are written.
pub(super) fn write(layout: &GgufFile, output: &Path, parts: Vec<FileEntry>, plan: &ModelPlan) -> Result<FileEntry> {
    let stored = Source { stored: Stored::open(output, &parts, plan)?, cast: layout.cast };
    let mut items: Vec<_> = layout.places.iter().map(Item::Place).collect();
    items.extend(layout.extra.iter().map(Item::Extra));
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
    let mut file = HashedFile::create_alone(&path)?;
    let io = |e| QuantError::io(&path, e);
    file.write_all(&header).map_err(io)?;
    for ((item, tensor), bytes) in items.iter().zip(&tensors).zip(bytes) {
        let start = file.bytes();
        match item {
            Item::Place(place) => stored.copy(place, &mut file).map_err(|e| e.at(&path))?,
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
                        let message = format!("{} would be of {kind} and {other}", place.name);
                        return Err(defect(&message));
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
            None => Ok(self.float(place, self.stored.dtype(self.stored.first(source))?).into()),
        }
    }

    /// The type that floats have in a place.
    fn float(&self, place: &Place, dtype: Dtype) -> Dtype {
        match (place.holds, self.cast.unwrap_or(dtype)) {
            (Holds::F32, _) => Dtype::F32,
            (Holds::F16OrF32, Dtype::F16) => Dtype::F16,
            (Holds::F16OrF32, Dtype::F64 | Dtype::F32 | Dtype::BF16) => Dtype::F32,
            // No reader computes with it.
            (Holds::Blocks | Holds::Floats, Dtype::F64) => Dtype::F32,
            (Holds::Blocks | Holds::Floats, dtype) => dtype,
        }
    }

    /// Writes the tensors of a place.
    fn copy(&self, place: &Place, out: &mut HashedFile) -> Result<(), Stop> {
        for source in &place.sources {
            let first = self.stored.first(*source);
            let extents = &self.stored.places(first).codes;
            let length: u64 = extents.iter().map(|extent| extent.length).sum();
            match place.rows {
                Rows::AsTheyAre => self.copy_extents(place, first, extents, PIECE, out)?,
                Rows::Turned { heads } => self.copy_extents(place, first, extents, length / u64::from(heads), out)?,
                Rows::HalvesSwapped => {
                    let (before, after) = split(extents, length / 2);
                    self.copy_extents(place, first, &after, PIECE, out)?;
                    self.copy_extents(place, first, &before, PIECE, out)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is in some extents, of a tensor in a place, in pieces of so many bytes.
    fn copy_extents(
        &self,
        place: &Place,
        tensor: usize,
        extents: &[Extent],
        piece: u64,
        out: &mut HashedFile,
    ) -> Result<(), Stop> {
        let mut left: u64 = extents.iter().map(|extent| extent.length).sum();
        let mut bytes = self.stored.read(extents);
        let kept = match self.stored.choice(tensor) {
            Some(_) => None,
            None => Some(self.stored.dtype(tensor)?),
        };
        let mut buffer = Vec::new();
        while left > 0 {
            // Of elements that are cast a piece ends between two.
            let taken = piece.min(left).max(1);
            buffer.resize(taken as usize, 0);
            bytes.read_exact(&mut buffer)?;
            left -= taken;
            if let Rows::Turned { heads } = place.rows {
                let rows = self.stored.tensor(tensor).shape.first().map_or(1, |rows| rows.unsigned_abs());
                let of_head = (rows / u64::from(heads)) as usize;
                buffer = turned(&buffer, buffer.len() / of_head.max(1), of_head);
            }
            match kept {
                Some(dtype) if place.adds_one => out.write_piece(&add_one(&buffer, dtype)?)?,
                Some(dtype) if self.float(place, dtype) != dtype => {
                    out.write_piece(&cast(&place.name, &buffer, dtype, self.float(place, dtype))?)?;
                }
                Some(_) | None => out.write_piece(&buffer)?,
            }
        }
        Ok(())
    }
}

/// Extents up to so many bytes, and those after them.
fn split(extents: &[Extent], at: u64) -> (Vec<Extent>, Vec<Extent>) {
    let (mut before, mut after, mut start) = (Vec::new(), Vec::new(), 0);
    for extent in extents {
        let (first, second) = extent.split(at.saturating_sub(start).min(extent.length));
        before.push(first);
        after.push(second);
        start += extent.length;
    }
    (before, after)
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
