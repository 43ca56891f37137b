//! The factors of second moments that the tasks of a process share: each is made when the first part needs it, and dropped
//! after the last one that does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_quant_kernels::{Factor, Isa};
use arrow_quant_udfs::Factors;
use datafusion::common::exec_datafusion_err;
use datafusion::error::DataFusionError;

use super::task::PartTask;
use crate::calibration::Moments;
use crate::plan::Feedback;
use crate::{QuantError, Result};

/// The factors of a job's tasks, by [`Feedback::factor_name`].
#[derive(Debug)]
pub(super) struct JobFactors {
    slots: HashMap<String, Slot>,
    /// The files of second moments that were opened.
    files: Mutex<HashMap<PathBuf, Arc<Moments>>>,
}

#[derive(Debug)]
struct Slot {
    feedback: Feedback,
    /// Locked while the factor is made, so that others wait for it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    factor: Option<Arc<Factor>>,
    /// Parts that have yet to end.
    parts: usize,
}

impl JobFactors {
    pub(super) fn new(tasks: &[PartTask]) -> Self {
        let mut slots: HashMap<String, Slot> = HashMap::new();
        for task in tasks {
            for (name, feedback) in of_task(task) {
                let state = State { factor: None, parts: 0 };
                let slot = slots.entry(name).or_insert(Slot { feedback: feedback.clone(), state: Mutex::new(state) });
                slot.state.get_mut().unwrap_or_else(PoisonError::into_inner).parts += 1;
            }
        }
        Self { slots, files: Mutex::new(HashMap::new()) }
    }

    /// Drops the factors that no other task needs than one that has ended.
    pub(super) fn ended(&self, task: &PartTask) {
        for slot in of_task(task).keys().filter_map(|name| self.slots.get(name)) {
            let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.parts = state.parts.saturating_sub(1);
            if state.parts == 0 {
                state.factor = None;
            }
        }
    }

    fn moments(&self, path: &Path) -> Result<Arc<Moments>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(moments) = files.get(path) {
            return Ok(Arc::clone(moments));
        }
        let moments = Arc::new(Moments::open(path)?);
        files.insert(path.to_path_buf(), Arc::clone(&moments));
        Ok(moments)
    }

    fn make(&self, feedback: &Feedback) -> Result<Factor> {
        let Feedback { path, input, damping, hash } = feedback;
        let changed = || {
            let message = format!("the second moments of {input} in `{}` have changed: run again", path.display());
            QuantError::configuration(message).at(path)
        };
        let moments = self.moments(path)?;
        let triangles = moments.triangles(moments.input(input).ok_or_else(changed)?)?;
        if triangles.hash() != *hash {
            return Err(changed());
        }
        Ok(triangles.factor(Isa::active()?, *damping)?)
    }
}

impl Factors for JobFactors {
    fn factor(&self, name: &str) -> datafusion::common::Result<Arc<Factor>> {
        let slot = self.slots.get(name).ok_or_else(|| exec_datafusion_err!("no second moments {name}"))?;
        let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factor) = &state.factor {
            return Ok(Arc::clone(factor));
        }
        let factor = Arc::new(self.make(&slot.feedback).map_err(|error| DataFusionError::External(Box::new(error)))?);
        state.factor = Some(Arc::clone(&factor));
        Ok(factor)
    }
}

/// The second moments that a task needs.
fn of_task(task: &PartTask) -> HashMap<String, &Feedback> {
    let feedback = task.tensors.iter().filter_map(|tensor| tensor.channels.as_ref()?.feedback.as_ref());
    feedback.map(|feedback| (feedback.factor_name(), feedback)).collect()
}
