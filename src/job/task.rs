//! The unit of work of a job as plain data: what is to be written of a part, and what was. Either can be sent to another
//! process as JSON; a task and the model that it names are all that writing the part needs.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_quant_formats::ContentHash;
use arrow_quant_formats::manifest::FileEntry;
use arrow_quant_kernels::Scheme;
use serde::{Deserialize, Serialize};

use super::writer;
use crate::config::Method;
use crate::plan::{Channels, Choice, ModelPlan};
use crate::tables::ModelParts;
use crate::targets::WrittenTensor;

/// The model that tasks are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskModel {
    /// Where it is opened, whatever the working directory is.
    pub location: PathBuf,
    /// Its fingerprint, which another model of the same tensors does not have.
    pub fingerprint: String,
}

/// What is to be written of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartTask {
    /// The program that wrote the task: another one may write other bytes for it.
    pub program: String,
    pub model: TaskModel,
    /// The part's number.
    pub part: usize,
    /// A hash of what its tensors are to become: tasks of a job with the same key write the same.
    pub key: String,
    /// The name of the target.
    pub target: String,
    #[serde(with = "name")]
    pub scheme: Scheme,
    #[serde(with = "name")]
    pub method: Method,
    /// Its tensors, in the order of the model.
    pub tensors: Vec<TaskTensor>,
}

/// What is to become of one tensor, as far as it is of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskTensor {
    pub component: String,
    pub tensor: String,
    /// The chunks of it that are of the part.
    pub chunks: Range<usize>,
    /// `None` to keep it.
    pub choice: Option<Choice>,
    /// What a calibration has to say on its weights.
    #[serde(with = "shared")]
    pub channels: Option<Arc<Channels>>,
}

/// What was written of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartRecord {
    /// The part's number.
    pub part: usize,
    /// The key of the task.
    #[serde(rename = "plan")]
    pub key: String,
    /// The file, its bytes and its hash.
    pub file: FileEntry,
    /// What was written of each of its tensors, in order, with its error sums.
    pub tensors: Vec<WrittenTensor>,
}

impl PartTask {
    /// The tasks of all parts of a model, in the order of the parts.
    pub(super) fn all(plan: &ModelPlan, parts: &ModelParts, model: &TaskModel) -> Vec<Self> {
        (0..parts.iter().len()).map(|part| Self::new(part, plan, parts, model)).collect()
    }

    fn new(part: usize, plan: &ModelPlan, parts: &ModelParts, model: &TaskModel) -> Self {
        let task_tensor = |(tensor, chunks): (usize, Range<usize>)| {
            let planned = &plan.tensors[tensor];
            TaskTensor {
                component: planned.component.clone(),
                tensor: planned.tensor.clone(),
                chunks,
                choice: planned.choice,
                // Of what is kept, channels have nothing to say.
                channels: planned.channels.clone().filter(|_| planned.choice.is_some()),
            }
        };
        let tensors: Vec<_> = parts.tensors(part).into_iter().map(task_tensor).collect();
        Self {
            program: writer(),
            model: model.clone(),
            part,
            key: key(&tensors),
            target: plan.allowed.target.to_string(),
            scheme: plan.settings.scheme,
            method: plan.settings.method,
            tensors,
        }
    }
}

/// A hash of what tensors are to become.
fn key(tensors: &[TaskTensor]) -> String {
    let mut hash = ContentHash::new();
    for TaskTensor { component, tensor, choice, channels, .. } in tensors {
        let channels = channels.as_ref().map(|channels| &channels.hash);
        // No name holds what separates names.
        hash.update(serde_json::json!([component, tensor, choice, channels]).to_string());
    }
    hash.finish()[..16].to_string()
}

/// A value by its name.
mod name {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What is shared, as its value.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<Arc<T>>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Option::<T>::deserialize(deserializer)?.map(Arc::new))
    }
}
