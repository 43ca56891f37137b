//! A target size: what it is, and the choices of bits and group sizes that meet it.

use arrow_quant_formats::manifest::Reason;

use super::size::Allocation;
use crate::{DiffusionQuantConfig, QuantError, SettingProblem};

/// A target size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeTarget {
    /// The field that has it.
    pub field: &'static str,
    pub bytes: u64,
}

impl SizeTarget {
    /// The target size of a configuration for a model of so many weights.
    pub(crate) fn of(config: &DiffusionQuantConfig, weights: u64) -> Option<Self> {
        let of_size = |size: f64| Self { field: "target_model_size_mb", bytes: (size * 1e6) as u64 };
        let of_bits = |bits: f64| Self { field: "target_bpw", bytes: (bits * weights as f64 / 8.0) as u64 };
        config.target_model_size_mb.map(of_size).or(config.target_bpw.map(of_bits))
    }

    /// That it cannot be met with fewer bytes than so many, in the unit of its field.
    pub(crate) fn refused(self, least: u64, weights: u64) -> QuantError {
        let unit = if self.field == "target_bpw" { weights as f64 / 8.0 } else { 1e6 };
        let least = (least as f64 / unit * 1e3).ceil() / 1e3;
        let asked = self.bytes as f64 / unit;
        QuantError::setting(self.field, SettingProblem::TooSmall { asked, least })
    }
}

/// A target size, and the choices of tensors that meet it.
#[derive(Debug, Clone)]
pub(crate) struct Sizing {
    pub target: SizeTarget,
    /// The choices that are left, and those that are made.
    pub allocation: Allocation,
}

impl Sizing {
    /// Why a tensor is what the target size chose.
    pub(crate) fn reason(&self) -> Reason {
        Reason::Target { field: self.target.field.to_string() }
    }
}
