//! What each tensor becomes and why: rules by architecture, the configuration, a plan that was given, a target size, and
//! what the target can hold.

mod allowed;
mod channels;
mod choice;
mod choose_sizes;
mod contents;
mod estimate;
mod family;
mod file;
mod floor;
pub(crate) mod memory;
mod model;
mod notes;
mod refusals;
mod request;
mod sample;
mod size;
mod size_target;
mod tensors;
#[cfg(test)]
mod tests;
mod ties;

pub(crate) use allowed::Allowed;
pub(crate) use channels::{Channels, Feedback};
pub(crate) use choice::{Choice, JobSettings};
pub(crate) use choose_sizes::choose_sizes;
pub(crate) use contents::Contents;
pub(crate) use estimate::{Estimate, measured};
pub(crate) use family::{Detected, Evidence, detect};
pub(crate) use floor::Floor;
pub(crate) use model::ModelPlan;
pub(crate) use notes::notes;
pub(crate) use request::Request;
pub(crate) use sample::Sampled;
pub(crate) use size::Allocation;
pub(crate) use tensors::TensorPlan;
pub(crate) use ties::repeated;
