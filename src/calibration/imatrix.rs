//! llama.cpp's importance matrices as calibrations. They have the mean squares of input channels, so they say how much each
//! channel counts, and nothing of ranges or timesteps.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::gguf::imatrix::{ChannelPower, is_gguf, of_gguf, of_legacy};
use arrow_quant_formats::gguf::language::runtime_names;
use arrow_quant_formats::{gguf, shown};

use super::input_channels;
use super::smoothing::relative;
use crate::plan::{Channels, TensorPlan};
use crate::{Calibration, Model, QuantError, Result, Tensor};

/// What names of files end with that may be importance matrices.
pub(super) const ENDINGS: [&str; 3] = ["gguf", "imatrix", "dat"];

/// The largest file that is read. It has one number for each input channel of a model.
const MOST: u64 = 1 << 30;

/// Reads a file.
pub(super) fn open(path: &Path) -> Result<Vec<ChannelPower>> {
    let wrong = |what: String| QuantError::defect(path, None, format!("not an importance matrix: {what}"));
    let length = std::fs::metadata(path).map_err(|e| QuantError::io(path, e))?.len();
    if length > MOST {
        return Err(wrong(format!("it has {length} bytes, and {MOST} at most are read")));
    }
    let bytes = std::fs::read(path).map_err(|e| QuantError::io(path, e))?;
    let powers = if is_gguf(&bytes) {
        let header = gguf::parse(&bytes, bytes.len() as u64).map_err(|e| wrong(e.to_string()))?;
        of_gguf(&header.ok_or_else(|| wrong("its header does not end".to_string()))?, &bytes)
    } else {
        of_legacy(&bytes)
    };
    powers.map_err(|e| wrong(e.to_string()))
}

impl Calibration {
    /// Whether it is an importance matrix.
    pub(crate) fn is_imatrix(&self) -> bool {
        !self.powers.is_empty()
    }

    /// Checks that it says more of inputs than how much their channels count.
    ///
    /// # Errors
    /// If it is an importance matrix.
    pub(crate) fn refuse_imatrix(&self) -> Result<()> {
        if !self.is_imatrix() {
            return Ok(());
        }
        let what = "it is an importance matrix, which has no ranges of inputs; expected a calibration table";
        Err(QuantError::defect(Path::new(&self.name), None, what.to_string()))
    }

    /// The importance of the input channels of each tensor of a model that is in the importance matrix, with the tensor's
    /// index.
    ///
    /// # Errors
    /// If none is, or one has other channels than its weights.
    pub(super) fn powers_of(&self, model: &Model) -> Result<Vec<(usize, Vec<f32>)>> {
        let by_name: HashMap<&str, &ChannelPower> =
            self.powers.iter().map(|power| (power.name.as_str(), power)).collect();
        let mut found = Vec::new();
        for (index, tensor) in model.tensors().iter().enumerate() {
            let Some((power, expert)) = power_of(&by_name, tensor) else { continue };
            let expected = input_channels(tensor);
            if expected != Some(power.channels) {
                let has = expected.map_or("no input channels".to_string(), |expected| expected.to_string());
                let what = format!("with {} channels; {} has {has}", power.channels, shown(&tensor.full_name()));
                return Err(self.refused(&power.name, &what));
            }
            found.push((index, relative(&mean_squares(power, expert))));
        }
        if found.is_empty() && self.is_imatrix() {
            let what = "and none of its weights is of the model: it is of another one";
            return Err(self.refused(&self.powers[0].name, what));
        }
        Ok(found)
    }
}

/// The entry of a tensor, by its own name or by what llama.cpp calls it, and its expert.
fn power_of<'a>(by_name: &HashMap<&str, &'a ChannelPower>, tensor: &Tensor) -> Option<(&'a ChannelPower, Option<u32>)> {
    let own = [tensor.full_name(), tensor.name.clone()].into_iter().map(|name| (name, None));
    own.chain(runtime_names(&tensor.name)).find_map(|(name, expert)| Some((*by_name.get(name.as_str())?, expert)))
}

/// The mean squares of an expert's channels; without a number, or of one that nothing was measured of, those of all experts
/// together.
pub(super) fn mean_squares(power: &ChannelPower, expert: Option<u32>) -> Vec<f64> {
    let of_experts = power.mean_squares.chunks(power.channels);
    let own = expert.and_then(|expert| of_experts.clone().zip(&power.counts).nth(expert as usize));
    if let Some((own, _)) = own.filter(|(_, count)| **count > 0.0) {
        return own.iter().map(|&square| f64::from(square)).collect();
    }
    let mut sums = vec![0.0; power.channels];
    for (squares, count) in of_experts.zip(&power.counts) {
        sums.iter_mut().zip(squares).for_each(|(sum, &square)| *sum += count.max(1.0) * f64::from(square));
    }
    sums
}

/// Plans the importance of channels. Returns what there is to know of tensors that have none.
///
/// # Errors
/// As [`powers_of`](Calibration::powers_of).
pub(super) fn plan_importance(
    calibration: &Calibration,
    model: &Model,
    plans: &mut [TensorPlan],
) -> Result<Option<String>> {
    for (index, importance) in calibration.powers_of(model)? {
        let tensor = &model.tensors()[index];
        let kernel = (tensor.row_length() as usize / importance.len()).max(1);
        let of_row = importance.iter().flat_map(|&channel| std::iter::repeat_n(channel, kernel)).collect();
        let stored = plans[index].same_as.unwrap_or(index);
        let channels = &mut plans[stored].channels;
        if channels.is_none() {
            *channels = Some(Arc::new(Channels::new(of_row, Vec::new())));
        }
    }
    let without =
        plans.iter().filter(|plan| plan.same_as.is_none() && plan.choice.is_some() && plan.channels.is_none()).count();
    let are = if without == 1 { "quantized tensor is" } else { "quantized tensors are" };
    let note = format!("{without} {are} not in the importance matrix: all their channels count alike");
    Ok((without > 0).then_some(note))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::model::tests::directory;

    /// An F32 model of a language model's two weights, one of them an expert's.
    fn model() -> tempfile::TempDir {
        let names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.experts.1.down_proj.weight"];
        let entry = |(at, name): (usize, &&str)| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2,4],"data_offsets":[{},{}]}}"#, 32 * at, 32 * at + 32)
        };
        let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
        let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        file.resize(file.len() + 64, 0);
        directory(&[("model.safetensors", file), ("config.json", b"{}".to_vec())])
    }

    /// The older file.
    fn written(directory: &tempfile::TempDir, entries: &[(&str, i32, &[f32])]) -> PathBuf {
        let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, sums) in entries {
            bytes.extend((name.len() as i32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(calls.to_le_bytes());
            bytes.extend((sums.len() as i32).to_le_bytes());
            bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        }
        let path = directory.path().join("imatrix.dat");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn weights_are_found_by_what_llama_cpp_calls_them() {
        let directory = model();
        let model = Model::open(directory.path()).unwrap();
        let down = "blk.0.ffn_down_exps.weight";
        let path = written(
            &directory,
            &[("blk.0.attn_q.weight", 2, &[2.0, 2.0, 4.0, 0.0]), (down, 1, &[1.0; 4]), ("output.weight", 1, &[1.0; 3])],
        );
        let calibration = Calibration::open(&path, 100).unwrap();
        assert!(calibration.is_imatrix() && calibration.check(&model).is_ok());
        let found = calibration.powers_of(&model).unwrap();
        let of = |name: &str| found.iter().find(|(index, _)| model.tensors()[*index].name.contains(name)).unwrap();
        assert_eq!(of("q_proj").1, [1.0, 1.0, 2.0, 1e-3]);
        assert_eq!(of("down_proj").1, [1.0; 4]);
        let message = calibration.refuse_imatrix().unwrap_err().to_string();
        assert!(
            message.contains("imatrix.dat: it is an importance matrix, which has no ranges of inputs"),
            "{message}"
        );
    }

    #[test]
    fn an_importance_matrix_of_another_model_is_refused() {
        let directory = model();
        let model = Model::open(directory.path()).unwrap();
        let refused = |entries: &[(&str, i32, &[f32])]| {
            let path = written(&directory, entries);
            Calibration::open(&path, 100).and_then(|calibration| calibration.check(&model)).unwrap_err().to_string()
        };
        let message = refused(&[("blk.7.attn_q.weight", 1, &[1.0; 4])]);
        assert!(message.contains("'blk.7.attn_q.weight'") && message.contains("it is of another one"), "{message}");
        let message = refused(&[("blk.0.attn_q.weight", 1, &[1.0; 3])]);
        assert!(message.contains("with 3 channels; model.layers.0.self_attn.q_proj.weight has 4"), "{message}");
        let message = refused(&[("blk.0.attn_q.weight", 1, &[-1.0; 4])]);
        assert!(message.contains("imatrix.dat: not an importance matrix"), "{message}");
    }
}
