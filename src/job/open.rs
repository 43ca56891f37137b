//! Opens the model of a job within its limit of memory.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::directory::Missing;
use arrow_quant_stores::Residence;

use crate::plan::memory;
use crate::{DiffusionQuantConfig, Model, QuantError, Result};

/// Opens a model, or reads it where streaming is off; and the number of parts that may be under way within the limit of
/// memory, of which `held` bytes are taken. It waits for the disk.
///
/// # Errors
/// If there is no readable model, another program quantized it in a way that is not read, or it does not fit the limit.
pub(super) fn open(path: &Path, config: &DiffusionQuantConfig, held: u64) -> Result<(Arc<Model>, usize)> {
    // Not mapped where the weights are not streamed, for there are file systems that refuse it. Headers alone are read to know
    // what the model is and how large.
    let residence = if config.enable_streaming { Residence::File } else { Residence::Ranges };
    let mut model = Model::load(path, residence, config.variant.as_deref())?;
    model.refuse_quantized()?;
    let in_flight = if config.enable_streaming {
        memory::in_flight(config, held)?
    } else {
        let bytes: u64 = model.files().map(|(_, file)| file.identity().length).sum();
        let in_flight = memory::in_flight(config, bytes + held)?;
        model = Model::load(path, Residence::Memory, config.variant.as_deref())?;
        in_flight
    };
    if model.tensors().is_empty() {
        return Err(QuantError::missing(model.path(), Missing::NoTensors));
    }
    Ok((Arc::new(model), in_flight))
}
