//! Files of weights and what their headers say: safetensors or GGUF.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::gguf::{self, MAX_HEADER};
use arrow_quant_formats::{full_name, safetensors};
use arrow_quant_stores::{Location, Residence, Store};

use crate::error::{QuantError, Result};

/// Bytes of a file that tell whether it can be one of weights, and how long its header is.
const START: u64 = 64;

/// Bytes of a GGUF file that are read first: its header does not say how long it is.
const GGUF_START: u64 = 1 << 16;

/// A file of weights.
#[derive(Debug, Clone)]
pub(super) struct WeightFile {
    /// Relative to the model's directory, with `/` between a component and the file.
    pub name: Arc<str>,
    pub store: Arc<dyn Store>,
    /// Bytes of its header.
    pub header: u64,
}

/// What a file says of its tensors.
pub(super) enum Header {
    Safetensors(safetensors::Header),
    Gguf(gguf::Header),
}

/// Opens a file of weights of a component, and reads its header.
pub(super) fn open(
    location: &Location,
    component: &str,
    path: &Path,
    residence: Residence,
) -> Result<(WeightFile, Header)> {
    let store = location.open(path, residence)?;
    let own_name = store.identity().path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = full_name(component, &own_name).into();
    let length = store.identity().length;
    if arrow_quant_formats::directory::is_gguf(&store.identity().path) {
        let parsed = gguf_header(&store)?;
        return Ok((WeightFile { name, header: parsed.data.min(length), store }, Header::Gguf(parsed)));
    }
    let format = |error| QuantError::format(&store.identity().path, error);
    let start = store.read_now(0..length.min(START))?;
    let header = safetensors::header_length(&start, length).map_err(format)?;
    let parsed = safetensors::parse(&store.read_now(0..header)?, length).map_err(format)?;
    Ok((WeightFile { name, store, header }, Header::Safetensors(parsed)))
}

/// The header of the GGUF file at a path.
pub(crate) fn gguf_header_at(path: &Path) -> Result<gguf::Header> {
    gguf_header(&Location::parse(path)?.open(Path::new(""), Residence::File)?)
}

fn gguf_header(store: &Arc<dyn Store>) -> Result<gguf::Header> {
    let identity = store.identity();
    let mut wanted = GGUF_START;
    loop {
        let start = store.read_now(0..wanted.min(identity.length))?;
        let parsed = gguf::parse(&start, identity.length);
        match parsed.map_err(|e| QuantError::defect(&identity.path, e.place, e.problem))? {
            Some(header) => return Ok(header),
            None => wanted = (2 * wanted).min(MAX_HEADER),
        }
    }
}
