//! How timesteps are grouped.

use std::str::FromStr;

use crate::{QuantError, Result};

/// What time groups are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouping {
    /// Groups at most.
    pub most: usize,
    pub boundaries: Boundaries,
}

/// Where groups end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundaries {
    /// Where the least is lost; fewer groups where they gain less than half a dB, in the mean and at the worst timestep, and
    /// are no worse than equal ones.
    Optimal,
    /// After as many timesteps each, or as nearly as can be.
    Equal,
}

impl FromStr for Boundaries {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "optimal" => Ok(Self::Optimal),
            "equal" => Ok(Self::Equal),
            _ => Err(QuantError::field(
                "time_group_boundaries",
                format!("time_group_boundaries is '{text}', allowed: optimal or equal"),
            )),
        }
    }
}
