//! How like its original a quantized model is.

use serde::Serialize;

/// How like its original one tensor is.
#[derive(Debug, Clone, Serialize)]
pub struct TensorQuality {
    /// The sub-model of a pipeline; empty in a plain model.
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// Bits of a code; `None` if the tensor was kept.
    pub bits: Option<u8>,
    /// Its elements.
    pub elements: u64,
    /// `None` if either is all zero.
    pub cosine_similarity: Option<f64>,
    /// In dB, infinite where nothing was lost; `None` if both are all zero.
    pub sqnr_db: Option<f64>,
    /// The greatest difference of a weight.
    pub max_abs_error: Option<f64>,
}

/// How like its original a quantized model is.
#[derive(Debug, Clone, Serialize)]
pub struct ValidationReport {
    /// Every floating-point tensor, in the order of the model.
    pub tensors: Vec<TensorQuality>,
    /// Of all quantized tensors as one.
    pub cosine_similarity: Option<f64>,
    /// Of all quantized tensors as one, in dB.
    pub sqnr_db: Option<f64>,
    /// Original bytes ÷ bytes of the files that hold weights.
    pub compression_ratio: f64,
    /// Of the files that hold weights, in 10⁶ bytes.
    pub model_size_mb: f64,
    /// How good the parameters of layers' inputs are; empty without a calibration.
    pub layers: Vec<LayerQuality>,
}

/// A quantized tensor below the floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Below {
    /// The sub-model of a pipeline; empty in a plain model.
    pub component: String,
    /// The tensor's name.
    pub tensor: String,
    /// `None` if it became all zeros, or holds what is not a number.
    pub cosine_similarity: Option<f64>,
}

impl ValidationReport {
    /// The quantized tensors whose cosine similarity is below `floor`, worst first. A tensor that became all zeros has none,
    /// and is below every floor.
    pub fn below(&self, floor: f64) -> Vec<Below> {
        let mut below: Vec<(f64, &TensorQuality)> = self
            .tensors
            .iter()
            .filter(|tensor| tensor.bits.is_some())
            .map(|tensor| (tensor.accuracy(), tensor))
            .filter(|(accuracy, tensor)| *accuracy < floor || tensor.has_lost_all())
            .collect();
        below.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let named = |(_, tensor): (f64, &TensorQuality)| Below {
            component: tensor.component.clone(),
            tensor: tensor.tensor.clone(),
            cosine_similarity: tensor.cosine_similarity.filter(|cosine| cosine.is_finite()),
        };
        below.into_iter().map(named).collect()
    }
}

impl TensorQuality {
    /// Its cosine similarity, where that is not defined 1 if nothing was lost, and 0 if all was.
    fn accuracy(&self) -> f64 {
        match self.cosine_similarity {
            None if self.has_lost_all() => 0.0,
            None => 1.0,
            Some(cosine) if cosine.is_nan() => -1.0,
            Some(cosine) => cosine,
        }
    }

    /// Whether it became all zeros, and was not.
    fn has_lost_all(&self) -> bool {
        self.cosine_similarity.is_none() && self.max_abs_error.is_some_and(|error| error > 0.0)
    }
}

/// How good the parameters of a layer's inputs are, in one state of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerQuality {
    /// The weight of the layer, `component/tensor` in a pipeline.
    pub tensor: String,
    /// The state; empty where there is none.
    pub state: String,
    /// Timesteps that were measured.
    pub timesteps: usize,
    /// Groups of timesteps with parameters of their own.
    pub time_groups: usize,
    /// SQNR of the quantized inputs in dB: the mean over timesteps.
    pub activation_sqnr_db: f64,
    /// That of the worst timestep.
    pub worst_activation_sqnr_db: f64,
    /// What the parameters lose over each timestep's own best, in dB: the mean over timesteps.
    pub loss_db: f64,
    /// That of the worst timestep.
    pub worst_loss_db: f64,
    /// ‖X Wᵀ − (X/s)(W s)ᵀ‖ ÷ ‖X Wᵀ‖ in 32-bit arithmetic, on values from the ranges of the inputs and a sample of rows;
    /// `None` without smoothing.
    pub smoothing_error: Option<f64>,
    /// SQNR of the layer's output in dB, inputs and weights both quantized: the mean over timesteps.
    pub output_sqnr_db: f64,
    /// That of the worst timestep.
    pub worst_output_sqnr_db: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, bits: Option<u8>, cosine: Option<f64>, max_abs_error: Option<f64>) -> TensorQuality {
        TensorQuality {
            component: String::new(),
            tensor: name.to_string(),
            bits,
            elements: 100,
            cosine_similarity: cosine,
            sqnr_db: cosine.map(|_| 10.0),
            max_abs_error,
        }
    }

    fn below(tensors: Vec<TensorQuality>, floor: f64) -> Vec<(String, Option<f64>)> {
        let report = ValidationReport {
            tensors,
            cosine_similarity: None,
            sqnr_db: None,
            compression_ratio: 1.0,
            model_size_mb: 1.0,
            layers: vec![],
        };
        report.below(floor).into_iter().map(|below| (below.tensor, below.cosine_similarity)).collect()
    }

    #[test]
    fn tensors_below_the_floor_are_worst_first() {
        let tensors = vec![
            tensor("fine", Some(4), Some(0.99), Some(0.1)),
            tensor("poor", Some(4), Some(0.8), Some(0.1)),
            tensor("worse", Some(4), Some(0.7), Some(0.1)),
            tensor("lost", Some(4), None, Some(0.1)),
            tensor("broken", Some(4), Some(f64::NAN), Some(0.1)),
            tensor("zeros", Some(4), None, Some(0.0)),
            tensor("kept", None, None, None),
        ];
        let expected = [("broken", None), ("lost", None), ("worse", Some(0.7)), ("poor", Some(0.8))];
        let expected: Vec<_> = expected.into_iter().map(|(name, cosine)| (name.to_string(), cosine)).collect();
        assert_eq!(below(tensors.clone(), 0.9), expected);
        assert!(below(tensors[..1].to_vec(), 0.9).is_empty());
        assert_eq!(below(tensors, 0.0).len(), 2, "what is lost is below every floor");
    }
}
