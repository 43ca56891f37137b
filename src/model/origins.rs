//! What other programs made of the weights of a model, and the tensors that they were before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::directory::Missing;
use arrow_quant_formats::restore::{self, GgmlTensor, RestoreError, Restored, Unrestorable};
use arrow_quant_formats::schemes::{Claim, QuantizationScheme, QuantizedSource, SchemeTensor, Sign, recognize};
use arrow_quant_formats::{StoredType, gguf};
use arrow_quant_stores::{Store, StoreError};

use super::Tensor;
use super::opened::WeightFile;
use super::restored::{Part, RestoredStore, StoredParts};
use crate::error::{QuantError, Result};

/// Bytes of an F32.
const SIZE: u64 = 4;

/// What was found out of a component that is quantized, or is said to be.
#[derive(Debug)]
pub(super) struct Origin {
    pub component: String,
    pub source: QuantizedSource,
    pub state: State,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum State {
    /// Its tensors are those that it was made of.
    Restored,
    /// They are those that are stored, because the scheme is not read, or for this reason.
    Refused(Option<Unrestorable>),
    /// Its tensors are plain numbers.
    Claimed,
}

impl Origin {
    /// Why the model at a path cannot be quantized.
    pub(super) fn refusal(&self, path: &Path) -> Option<QuantError> {
        match &self.state {
            State::Restored | State::Claimed => None,
            State::Refused(None) => Some(QuantError::missing(path, Missing::Quantized(Box::new(self.source.clone())))),
            State::Refused(Some(Unrestorable { tensor, problem })) => {
                let tensor = Some(tensor.clone()).filter(|tensor| !tensor.is_empty());
                Some(QuantError::defect(path, tensor, problem.clone()))
            }
        }
    }
}

/// Finds out how a component is quantized, and restores its tensors where that is understood.
///
/// # Errors
/// If what belongs to the weights cannot be read.
pub(super) fn restored(
    component: &str,
    claims: &[Claim],
    metadata: &BTreeMap<String, String>,
    tensors: Vec<Tensor>,
) -> Result<(Vec<Tensor>, Option<Origin>)> {
    let looked_at: Vec<_> = tensors
        .iter()
        .map(|tensor| SchemeTensor { name: &tensor.name, stored: tensor.stored, shape: &tensor.shape })
        .collect();
    let source = recognize(claims, &looked_at);
    let shown = source.as_ref().filter(|source| source.is_in_tensors);
    let parts = parts(&tensors);
    let stored = restore::Stored {
        scheme: shown.map(|source| &source.scheme),
        config: claims.first().filter(|_| shown.is_some()).map(|claim| &claim.config),
        metadata,
        tensors: &looked_at,
    };
    let planned = match restore::plan(&stored, &parts) {
        Ok(planned) => Ok(planned),
        Err(RestoreError::Tensor(problem)) => Err(problem),
        Err(RestoreError::Read(error)) => return Err(StoreError::into(error)),
    };
    let state = match &planned {
        _ if source.as_ref().is_some_and(|source| !source.is_in_tensors) => State::Claimed,
        Ok(Some(_)) => State::Restored,
        Ok(None) => State::Refused(None),
        Err(problem) => State::Refused(Some(problem.clone())),
    };
    let origin = source.map(|source| Origin { component: component.to_string(), source, state });
    let Ok(Some(restoration)) = planned else { return Ok((tensors, origin)) };
    let mut all: Vec<Tensor> = restoration.kept.iter().map(|index| tensors[*index].clone()).collect();
    for Restored { name, shape, codes, recipe } in restoration.tensors {
        let Tensor { component, file, .. } = &tensors[codes];
        all.extend(tensor(component, file, name, shape, |elements| {
            RestoredStore::new(recipe, &parts, codes, elements)
        }));
    }
    Ok((all, origin))
}

/// A tensor of F32 that is computed. `None` if it has more bytes than can be counted.
fn tensor(
    component: &str,
    file: &WeightFile,
    name: String,
    shape: Vec<i64>,
    store: impl FnOnce(u64) -> Option<RestoredStore>,
) -> Option<Tensor> {
    let elements = arrow_quant_formats::elements(&shape);
    let store: Arc<dyn Store> = Arc::new(store(elements)?);
    Some(Tensor {
        component: component.to_string(),
        name,
        stored: StoredType::F32,
        bytes: elements.checked_mul(SIZE)?,
        shape,
        file: WeightFile { store, ..file.clone() },
        offset: 0,
    })
}

/// Where the bytes of tensors are.
fn parts(tensors: &[Tensor]) -> StoredParts {
    let part = |tensor: &Tensor| Part {
        store: Arc::clone(&tensor.file.store),
        range: tensor.offset..tensor.offset + tensor.bytes,
    };
    StoredParts(tensors.iter().map(part).enumerate().collect())
}

/// The tensors of the model that a GGUF file was made of.
///
/// # Errors
/// If a tensor is of a type that is not read, or cannot be put in order.
pub(super) fn of_gguf(
    component: &str,
    file: &WeightFile,
    header: &gguf::Header,
) -> Result<(Vec<Tensor>, Option<Origin>)> {
    let part = |tensor: &gguf::Tensor| Part { store: Arc::clone(&file.store), range: tensor.range.clone() };
    let parts = StoredParts(header.tensors.iter().map(part).enumerate().collect());
    let path = &file.store.identity().path;
    let found = restore::ggml_tensors(header, &parts).map_err(|error| match error {
        RestoreError::Read(error) => StoreError::into(error),
        RestoreError::Tensor(Unrestorable { tensor, problem }) => {
            QuantError::defect(path, Some(tensor).filter(|tensor| !tensor.is_empty()), problem)
        }
    })?;
    let mut tensors = Vec::with_capacity(found.len());
    for GgmlTensor { name, shape, part, recipe } in found {
        let range = &header.tensors[part].range;
        match recipe {
            Ok(recipe) => tensors.extend(tensor(component, file, name, shape, |elements| {
                RestoredStore::new(recipe, &parts, part, elements)
            })),
            Err(stored) => tensors.push(Tensor {
                component: component.to_string(),
                name,
                stored,
                shape,
                bytes: range.end - range.start,
                file: file.clone(),
                offset: range.start,
            }),
        }
    }
    let blocks = header.tensors.iter().find(|tensor| tensor.kind.block_type().is_some());
    let origin = blocks.map(|tensor| Origin {
        component: component.to_string(),
        source: QuantizedSource {
            scheme: QuantizationScheme::Ggml,
            signs: vec![Sign::Blocks { name: tensor.name.clone(), kind: tensor.kind.name() }],
            is_in_tensors: true,
        },
        state: State::Restored,
    });
    Ok((tensors, origin))
}
