//! Deployment profiles: one name for the values of many fields.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{QuantError, Result};

/// Where the quantized model will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeploymentProfile {
    /// Smallest: 2 bits, groups of 256.
    Edge,
    /// Balanced: 4 bits, groups of 128.
    #[default]
    Local,
    /// Closest to the original: 8 bits, groups of 64.
    Cloud,
}

impl DeploymentProfile {
    /// Every profile with its name.
    pub const ALL: [(Self, &'static str); 3] = [(Self::Edge, "edge"), (Self::Local, "local"), (Self::Cloud, "cloud")];
}

impl fmt::Display for DeploymentProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

impl FromStr for DeploymentProfile {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(profile, _)| *profile).ok_or_else(|| {
            QuantError::field(
                "deployment_profile",
                format!("deployment_profile is '{text}', allowed: edge, local or cloud"),
            )
        })
    }
}
