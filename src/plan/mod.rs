//! What each tensor becomes and why: rules by architecture, the configuration, a plan that was given, or a target size.

mod channels;
mod family;
mod file;
pub(crate) mod memory;
mod sample;
mod size;
mod tensors;
mod ties;

pub(crate) use channels::Channels;
pub(crate) use family::{Detected, Evidence, detect};
pub(crate) use file::read as read_plan;
pub(crate) use sample::{Cost, Sampled, Sampling, all_choices};
pub(crate) use size::Allocation;
pub(crate) use tensors::{
    Choice, TensorPlan, has_channels, is_matched, kept_unless_smaller, plan_table, plan_tensors, quantized_bytes,
    refusal,
};
