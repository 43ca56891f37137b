//! The files, from the files of parts.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_formats::{TensorEntry, safetensors};
use arrow_quant_kernels::{Dtype, Isa, ParameterDtype, Weights, to_f32};
use serde_json::{Map, Value, json};

use super::{CONFIG, Component, Content, FILE, GroupedTensor, Layer, NewTensor, SafetensorsLayout, is_linear, module};
use crate::plan::{Choice, ModelPlan};
use crate::targets::defect;
use crate::targets::hashed::HashedFile;
use crate::targets::stored::{Extent, Stop, Stored, cast};
use crate::{QuantError, Result, disk};

/// Bytes that are copied at once, a multiple of the size of every element.
const PIECE: usize = 1 << 20;

/// Data begins at a multiple of this, so that a mapped file can be used where it is.
const ALIGNMENT: usize = 64;

/// Writes the files of all components.
pub(super) fn write(
    layout: &SafetensorsLayout,
    output: &Path,
    parts: &[FileEntry],
    plan: &ModelPlan,
) -> Result<Vec<FileEntry>> {
    let stored = Stored::open(output, parts, plan)?;
    let written = layout.components.iter().map(|component| {
        let mine = |index: &usize| plan.tensors[*index].component == component.name;
        let tensors: Vec<usize> = (0..plan.tensors.len()).filter(mine).collect();
        let entry = write_weights(layout, output, component, &stored, &tensors)?;
        if !layout.is_file {
            write_config(layout, output, component, &stored, &tensors)?;
        }
        Ok(entry)
    });
    written.collect()
}

/// Writes the file of a component.
fn write_weights(
    layout: &SafetensorsLayout,
    output: &Path,
    component: &Component,
    stored: &Stored<'_>,
    tensors: &[usize],
) -> Result<FileEntry> {
    let mut new = Vec::new();
    for &index in tensors {
        new.extend(new_tensors(layout, stored, index)?.into_iter().map(|tensor| (index, tensor)));
    }
    let entry = |tensor: &NewTensor| TensorEntry {
        name: tensor.name.clone(),
        stored: tensor.stored,
        shape: tensor.shape.clone(),
        range: 0..0,
    };
    let entries: Vec<_> = new.iter().map(|(_, tensor)| entry(tensor)).collect();
    let metadata = [("format".to_string(), layout.dialect.format().to_string())].into_iter().collect();
    let relative = if layout.is_file { Path::new(FILE) } else { &component.file };
    let path = output.join(relative);
    let header = safetensors::write_header(&metadata, &entries, ALIGNMENT).map_err(|e| QuantError::format(&path, e))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| QuantError::io(parent, e))?;
    }
    let mut file = HashedFile::create_alone(&path)?;
    file.write_all(&header).map_err(|e| QuantError::io(&path, e))?;
    for (index, tensor) in &new {
        let start = file.bytes();
        copy(stored, *index, tensor, &mut file).map_err(|stop| stop.at(&path))?;
        let expected = tensor.stored.bytes(arrow_quant_formats::elements(&tensor.shape));
        if Some(file.bytes() - start) != expected {
            return Err(defect(&format!("{} has {} bytes, expected {expected:?}", tensor.name, file.bytes() - start)));
        }
    }
    file.finish(&path, relative.to_string_lossy().replace('\\', "/"))
}

/// The tensors that stand for one of the model.
fn new_tensors(layout: &SafetensorsLayout, stored: &Stored<'_>, index: usize) -> Result<Vec<NewTensor>> {
    let tensor = stored.tensor(index);
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    match stored.choice(index) {
        Some(Choice::Grouped { bits, group_size }) => {
            let places = stored.places(index);
            let needs_f32 = places.scales.iter().any(|extent| extent.dtype == ParameterDtype::F32);
            let needed = if needs_f32 { ParameterDtype::F32 } else { ParameterDtype::F16 };
            let parameters = layout.dialect.parameters(needed);
            let columns = tensor.row_length() as i64;
            let rows = tensor.elements() as i64 / columns.max(1);
            Ok(layout.dialect.tensors(&GroupedTensor { name: &name, rows, columns, bits, group_size, parameters }))
        }
        Some(Choice::Block(block_type)) => Err(defect(&format!("{name} is of {block_type}"))),
        None => {
            let cast = layout.cast.filter(|wanted| tensor.float_dtype().is_some_and(|dtype| dtype != *wanted));
            let (kind, content) = match cast {
                Some(dtype) => (dtype.into(), Content::Cast(dtype)),
                None => (tensor.stored, Content::Elements),
            };
            Ok(vec![NewTensor { name, stored: kind, shape, content }])
        }
    }
}

/// Writes the content of a tensor.
fn copy(stored: &Stored<'_>, index: usize, tensor: &NewTensor, out: &mut HashedFile) -> Result<(), Stop> {
    let places = stored.places(index);
    match &tensor.content {
        Content::Elements | Content::Codes => in_pieces(stored, &places.codes, |bytes| Ok(out.write_piece(bytes)?))?,
        Content::Cast(dtype) => {
            let from = stored.dtype(stored.first(index))?;
            in_pieces(stored, &places.codes, |bytes| {
                Ok(out.write_piece(&cast(&tensor.name, bytes, from, *dtype)?)?)
            })?;
        }
        Content::Scales => parameters(stored, &places.scales, tensor, out)?,
        Content::Minima => parameters(stored, &places.minima, tensor, out)?,
        Content::TurnedScales => out.write_all(&turned(&values(stored, &places.scales)?, tensor))?,
        Content::TurnedMiddles => {
            let (scales, minima) = (values(stored, &places.scales)?, values(stored, &places.minima)?);
            let middles: Vec<f32> = scales.iter().zip(&minima).map(|(scale, min)| 8.0 * scale + min).collect();
            out.write_all(&turned(&middles, tensor))?;
        }
        Content::Bytes(bytes) => out.write_all(bytes)?,
    }
    Ok(())
}

/// Calls `write` with the bytes of extents, piece by piece.
fn in_pieces(
    stored: &Stored<'_>,
    extents: &[Extent],
    mut write: impl FnMut(&[u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut bytes = stored.read(extents);
    let mut left: u64 = extents.iter().map(|extent| extent.length).sum();
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let taken = left.min(PIECE as u64) as usize;
        bytes.read_exact(&mut buffer[..taken])?;
        left -= taken as u64;
        write(&buffer[..taken])?;
    }
    Ok(())
}

/// Writes parameters in the type of the tensor, which holds those of all groups.
fn parameters(stored: &Stored<'_>, extents: &[Extent], tensor: &NewTensor, out: &mut HashedFile) -> Result<(), Stop> {
    for run in extents.chunk_by(|a, b| a.dtype == b.dtype) {
        if Some(of(run[0].dtype)) == tensor.stored.float() {
            in_pieces(stored, run, |bytes| Ok(out.write_piece(bytes)?))?;
        } else {
            in_pieces(stored, run, |bytes| {
                Ok(out.write_all(&cast(
                    &tensor.name,
                    bytes,
                    of(run[0].dtype),
                    tensor.stored.float().unwrap_or(Dtype::F32),
                )?)?)
            })?;
        }
    }
    Ok(())
}

fn of(parameters: ParameterDtype) -> Dtype {
    match parameters {
        ParameterDtype::F16 => Dtype::F16,
        ParameterDtype::F32 => Dtype::F32,
    }
}

/// The parameters of all groups of a tensor.
fn values(stored: &Stored<'_>, extents: &[Extent]) -> Result<Vec<f32>, Stop> {
    let mut values = Vec::new();
    for run in extents.chunk_by(|a, b| a.dtype == b.dtype) {
        in_pieces(stored, run, |bytes| {
            let isa = Isa::active().map_err(QuantError::from)?;
            let weights = Weights::one_row(of(run[0].dtype), bytes).map_err(QuantError::from)?;
            values.extend(to_f32(isa, weights));
            Ok(())
        })?;
    }
    Ok(values)
}

/// Values of a row after those of the row before, as the columns of a tensor.
fn turned(values: &[f32], tensor: &NewTensor) -> Vec<u8> {
    let &[groups, rows] = tensor.shape.as_slice() else { return Vec::new() };
    let (groups, rows) = (groups.unsigned_abs() as usize, rows.unsigned_abs() as usize);
    let at = |group: usize| (0..rows).map(move |row| row * groups + group);
    (0..groups).flat_map(at).filter_map(|index| values.get(index)).flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes the configuration of a component, with what is to be told of its weights.
fn write_config(
    layout: &SafetensorsLayout,
    output: &Path,
    component: &Component,
    stored: &Stored<'_>,
    tensors: &[usize],
) -> Result<()> {
    let Some(config) = &component.config else { return Ok(()) };
    let mut config = config.clone();
    // Of what the weights were before.
    for key in ["quantization_config", "quantization", "compression_config"] {
        config.remove(key);
    }
    if let Some(dtype) = layout.cast {
        name_dtype(&mut config, dtype);
    }
    let layers: Vec<Layer> = tensors.iter().filter_map(|index| layer(stored, *index)).collect();
    layout.dialect.configure(&mut config, &layers);
    let path = output.join(&component.name).join(CONFIG);
    let json = serde_json::to_string_pretty(&Value::Object(config))
        .map_err(|e| QuantError::configuration(format!("{CONFIG} cannot be written: {e}")))?;
    disk::write_file(&path, (json + "\n").as_bytes())
}

/// What a configuration tells of a tensor; nothing of one that is no weights of a module.
fn layer(stored: &Stored<'_>, index: usize) -> Option<Layer> {
    let tensor = stored.tensor(index);
    if tensor.shape.len() < 2 || !tensor.name.ends_with(".weight") {
        return None;
    }
    let grouped = match stored.choice(index) {
        Some(Choice::Grouped { bits, group_size }) => Some((bits, group_size)),
        Some(Choice::Block(_)) | None => None,
    };
    Some(Layer { module: module(&tensor.name).to_string(), grouped, is_linear: is_linear(tensor) })
}

/// Says in which type the weights are, where the configuration says it.
fn name_dtype(config: &mut Map<String, Value>, dtype: Dtype) {
    let name = match dtype {
        Dtype::F64 => "float64",
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
    };
    for key in ["dtype", "torch_dtype"] {
        if config.contains_key(key) {
            config.insert(key.to_string(), json!(name));
        }
    }
}
