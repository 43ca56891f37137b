//! The floor: the least quality of a quantized tensor.

use arrow_quant_formats::manifest::Shortfall;
use arrow_quant_kernels::PairSums;

use crate::DiffusionQuantConfig;

/// The least quality of a quantized tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    cosine_similarity: f64,
    sqnr_db: Option<f64>,
}

impl Floor {
    pub(crate) fn of(config: &DiffusionQuantConfig) -> Self {
        Self { cosine_similarity: config.min_accuracy, sqnr_db: config.min_sqnr_db }
    }

    /// Whether a tensor with these sums may be as it is. One of zeros that stay zeros may; one that became zeros may not.
    pub(crate) fn allows(&self, sums: &PairSums) -> bool {
        if sums.sum_ee == 0.0 {
            return true;
        }
        sums.cosine_similarity().is_some_and(|cosine| cosine >= self.cosine_similarity)
            && self.sqnr_db.is_none_or(|floor| sums.sqnr_db() >= floor)
    }

    /// The part of the floor that a tensor is below.
    pub(crate) fn shortfall(&self, sums: &PairSums) -> Shortfall {
        match (sums.cosine_similarity(), self.sqnr_db) {
            (Some(cosine), Some(floor)) if cosine >= self.cosine_similarity => {
                Shortfall::Sqnr { found: sums.sqnr_db(), floor }
            }
            (Some(cosine), _) => Shortfall::CosineSimilarity { found: cosine, floor: self.cosine_similarity },
            (None, _) => Shortfall::Zeros { floor: self.cosine_similarity },
        }
    }
}
