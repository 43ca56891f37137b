//! The configuration of a job.

use std::fmt;
use std::str::FromStr;

use arrow_quant_kernels::{Bits, GroupSize, Method, Scheme, Settings};
use regex::Regex;
use serde::Serialize;

use crate::{QuantError, Result};

/// Where the quantized model will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
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
            QuantError::Configuration(format!("deployment_profile is '{text}', allowed: edge, local or cloud"))
        })
    }
}

/// How a model is to be quantized. A profile gives every field its value; set those that should differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffusionQuantConfig {
    /// Where the other fields' values came from.
    pub deployment_profile: DeploymentProfile,
    /// Bits of a code: 2, 4 or 8.
    pub bit_width: i64,
    /// Weights that share a scale: 32, 64, 128 or 256.
    pub group_size: i64,
    /// `affine`, `asymmetric` or `symmetric`.
    pub scheme: String,
    /// `mse` or `minmax`.
    pub method: String,
    /// Cores to use; 0 for all. Not part of what a model is quantized to, so not recorded with it.
    #[serde(skip)]
    pub num_threads: usize,
    /// A regular expression; tensors whose names it does not match are kept as they are.
    pub tensors: Option<String>,
}

impl Default for DiffusionQuantConfig {
    fn default() -> Self {
        Self::from_profile(DeploymentProfile::default())
    }
}

impl DiffusionQuantConfig {
    /// The configuration of a profile.
    pub fn from_profile(profile: DeploymentProfile) -> Self {
        let (bit_width, group_size) = match profile {
            DeploymentProfile::Edge => (2, 256),
            DeploymentProfile::Local => (4, 128),
            DeploymentProfile::Cloud => (8, 64),
        };
        Self {
            deployment_profile: profile,
            bit_width,
            group_size,
            scheme: Scheme::Affine.name().to_string(),
            method: Method::Mse.name().to_string(),
            num_threads: 0,
            tensors: None,
        }
    }

    /// Cores to use.
    pub fn threads(&self) -> usize {
        match self.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Naming the field, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        self.settings()?;
        self.selected()?;
        Ok(())
    }

    /// The settings of the kernels.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let named = |field: &str, error: arrow_quant_kernels::KernelError| {
            let message = error.to_string();
            // The kernel knows the field as `bits`; the user knows it by its name here.
            QuantError::Configuration(match message.strip_prefix("bits ") {
                Some(rest) => format!("{field} {rest}"),
                None => message,
            })
        };
        Ok(Settings {
            bits: Bits::try_from(self.bit_width).map_err(|e| named("bit_width", e))?,
            group_size: GroupSize::try_from(self.group_size).map_err(|e| named("group_size", e))?,
            scheme: self.scheme.parse().map_err(|e| named("scheme", e))?,
            method: self.method.parse().map_err(|e| named("method", e))?,
        })
    }

    /// The expression that selects tensors.
    pub(crate) fn selected(&self) -> Result<Option<Regex>> {
        let Some(pattern) = &self.tensors else { return Ok(None) };
        match Regex::new(pattern) {
            Ok(regex) => Ok(Some(regex)),
            Err(error) => {
                let reason = error.to_string();
                let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Err(QuantError::Configuration(format!(
                    "tensors is '{pattern}', which is no regular expression: {last}"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_the_documented_values() {
        for (name, bits, group_size) in [("edge", 2, 256), ("local", 4, 128), ("cloud", 8, 64)] {
            let config = DiffusionQuantConfig::from_profile(name.parse().unwrap());
            assert_eq!((config.bit_width, config.group_size, config.method.as_str()), (bits, group_size, "mse"));
            assert_eq!(config.deployment_profile.to_string(), name);
            config.validate().unwrap();
        }
    }

    #[test]
    fn bad_values_are_named_with_what_is_allowed() {
        let message = |change: fn(&mut DiffusionQuantConfig)| {
            let mut config = DiffusionQuantConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(message(|c| c.bit_width = 3), "bit_width is 3, allowed: 2, 4 or 8");
        assert_eq!(message(|c| c.group_size = 0), "group_size is 0, allowed: 32, 64, 128 or 256");
        assert!(message(|c| c.scheme = "x".into()).starts_with("scheme is x, allowed: one of 'affine'"));
        assert!(message(|c| c.method = "x".into()).starts_with("method is x, allowed: one of 'minmax'"));
        assert!(
            message(|c| c.tensors = Some("(".into())).starts_with("tensors is '(', which is no regular expression")
        );
        let unknown = "phone".parse::<DeploymentProfile>().unwrap_err().to_string();
        assert_eq!(unknown, "deployment_profile is 'phone', allowed: edge, local or cloud");
    }
}
