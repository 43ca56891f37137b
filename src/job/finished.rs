//! A run that is to go on where nothing is left to do: an earlier one finished the output.

use std::path::Path;
use std::time::Instant;

use super::place::in_the_way;
use super::query_note;
use super::staging::{Existing, Found, Staging};
use crate::model::manifest_at;
use crate::report::{ModelReport, QuantizeReport};
use crate::targets::Target;
use crate::workers::blocking;
use crate::{DiffusionQuantConfig, Model, OutputProblem, Result};

/// Looks whether there is a place for an output. The report of it, if a run is to go on and the same job has finished it; `None`
/// if there is work to do.
///
/// # Errors
/// If something is in the way, a finished output of another job included.
pub(super) async fn finished(
    model: &Path,
    out: &Path,
    config: &DiffusionQuantConfig,
    (existing, target): (Existing, &'static dyn Target),
    query: Option<&str>,
) -> Result<Option<QuantizeReport>> {
    let started = Instant::now();
    let (model, out, settings) = (model.to_path_buf(), out.to_path_buf(), config.recorded());
    let note = query.map(query_note);
    blocking(move || {
        let Found::Finished = Staging::look(&out, existing, target)? else { return Ok(None) };
        let manifest = manifest_at(&out)?;
        let is_same_source = match note {
            // The rows of a query have no version of their own.
            Some(note) => manifest.notes.contains(&note),
            None => manifest.source.fingerprint == Model::open(&model)?.fingerprint()?,
        };
        if !is_same_source || manifest.settings != settings {
            return Err(in_the_way(&out, OutputProblem::OfAnotherJob));
        }
        Staging::forget(&out);
        let parts = manifest.files.len();
        Ok(Some(QuantizeReport {
            model,
            output: out,
            parts,
            resumed_parts: parts,
            was_finished: true,
            started_afresh: None,
            report: ModelReport::new(manifest),
            quantization_time_s: started.elapsed().as_secs_f64(),
        }))
    })
    .await
}
