//! How much memory a job takes, and how many parts may be under way within a limit.

use crate::{DiffusionQuantConfig, Held, QuantError, Result, SettingProblem};

/// What the program takes beside its parts, its code included, in 10⁶ bytes; measured.
const BASE_MB: u64 = 160;

/// What a part under way takes: a row group that is being filled, a batch, and the pages it is made from; measured.
const PART_MB: u64 = 30;

/// Parts to have under way at once. `held` are the bytes of a calibration, and of a model that was read into memory.
///
/// # Errors
/// If the limit is too low for a single one.
pub(crate) fn in_flight(config: &DiffusionQuantConfig, held: u64) -> Result<usize> {
    // One more than there are threads, to work on while another waits for the disk.
    let wanted = config.threads() + 1;
    let Some(limit) = config.max_memory_limit_mb else { return Ok(wanted) };
    let least = BASE_MB + PART_MB + held.div_ceil(1_000_000);
    match limit.checked_sub(least) {
        Some(left) => Ok(wanted.min(1 + (left / PART_MB) as usize)),
        None => {
            let held = if config.enable_streaming { Held::Calibration } else { Held::Model };
            let problem = SettingProblem::MemoryLimit { limit_mb: limit, least_mb: least, held };
            Err(QuantError::setting("max_memory_limit_mb", problem))
        }
    }
}

/// The most memory that a job is expected to take, with a calibration of so many bytes.
pub(crate) fn estimate_mb(config: &DiffusionQuantConfig, model_bytes: u64, calibration: u64) -> Result<u64> {
    let held = calibration + if config.enable_streaming { 0 } else { model_bytes };
    Ok(BASE_MB + held.div_ceil(1_000_000) + PART_MB * in_flight(config, held)? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_parts_at_once_within_a_limit() {
        let mut config = DiffusionQuantConfig { num_threads: 8, ..DiffusionQuantConfig::default() };
        assert_eq!(in_flight(&config, 0).unwrap(), 9);
        for (limit, parts) in [(192, 1), (220, 2), (300, 4), (10_000, 9)] {
            config.max_memory_limit_mb = Some(limit);
            assert_eq!(in_flight(&config, 0).unwrap(), parts, "{limit}");
            assert!(estimate_mb(&config, 1 << 40, 0).unwrap() <= limit);
        }
        config.enable_streaming = false;
        config.max_memory_limit_mb = Some(300);
        let message = in_flight(&config, 1_000_000_000).unwrap_err().to_string();
        assert!(message.contains("max_memory_limit_mb is 300") && message.contains("1190 or more"), "{message}");
        config.enable_streaming = true;
        let message = in_flight(&config, 200_000_000).unwrap_err().to_string();
        assert!(message.contains("the calibration is held in memory: allowed for it are 390 or more"), "{message}");
    }
}
