//! Validation: a query over the original and the quantized model side by side.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float64Type;
use arrow_quant_kernels::{Isa, Weights, to_f32};
use datafusion::common::TableReference;
use datafusion::logical_expr::{JoinType, col, lit};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use serde::Serialize;

use super::plan::full_name;
use super::report::{TensorReport, finite};
use super::workers::on_threads;
use crate::calibration::LayerWeights;
use crate::session::{register_model, session_config, with_config};
use crate::tables::QuantizedModel;
use crate::{Calibration, LayerQuality, Model, QuantError, Result, Tensor};

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

/// The original's chunks are mapped, so the join holds on to views of them while the quantized model streams past. Each
/// side has the chunks that its tensors' shapes imply, so chunks with the same number correspond.
const QUERY: &str = "
    SELECT o.component, o.tensor,
           cosine_similarity_agg(o.weights, q.weights) AS cosine_similarity,
           sqnr_agg(o.weights, q.weights) AS sqnr_db,
           max_abs_error_agg(o.weights, q.weights) AS max_abs_error,
           tensor_stats_agg(o.weights)['rms'] AS original_rms,
           tensor_stats_agg(q.weights)['rms'] AS quantized_rms
    FROM original.weights o JOIN quantized_model.weights q
      ON o.component = q.component AND o.tensor = q.tensor AND o.chunk = q.chunk
    WHERE o.weights['dtype'] IN ('F64', 'F32', 'F16', 'BF16')
    GROUP BY o.component, o.tensor";

/// Compares a quantized model with its original, weight by weight; and with a calibration, the parameters of its activations
/// with what the inputs of layers were.
///
/// # Errors
/// If either cannot be read, or they do not have the same tensors of the same shapes; if the calibration is not of the model,
/// or a timestep of it is not in exactly one time group.
pub async fn validate_model(
    original: &Path,
    quantized: &Path,
    threads: usize,
    calibration: Option<Arc<Calibration>>,
) -> Result<ValidationReport> {
    let model = Arc::new(Model::open(original)?);
    let other = QuantizedModel::open(quantized)?;
    if let Some(calibration) = &calibration {
        calibration.check(&model)?;
        refuse_uncalibrated(&other, quantized)?;
    }
    other.verify().await?;
    let reports = same_tensors(&model, &other)?;
    let mut config = session_config(threads);
    // The original must stay on the side that the join holds on to.
    config.options_mut().optimizer.join_reordering = false;
    let ctx = with_config(config)?;
    register_model(&ctx, "original", original).await?;
    register_model(&ctx, "quantized_model", quantized).await?;
    let measured = measure(&ctx).await?;
    let layers = match &calibration {
        Some(calibration) => layers(&ctx, &model, &other, calibration, threads).await?,
        None => Vec::new(),
    };
    let mut pooled = Pooled::default();
    let mut tensors = Vec::new();
    for (tensor, report) in model.tensors().iter().zip(reports) {
        if tensor.float_dtype().is_none() || tensor.elements() == 0 {
            continue;
        }
        let name = full_name(&tensor.component, &tensor.name);
        let Some(figures) = measured.get(&(tensor.component.clone(), tensor.name.clone())) else {
            let message = format!("{name}: `{}` has no weights of it, quantize the model again", quantized.display());
            return Err(QuantError::ShapeMismatch { tensor: name, message });
        };
        if report.bits.is_some() && report.same_as.is_none() {
            pooled.add(tensor.elements(), figures);
        }
        tensors.push(TensorQuality {
            component: tensor.component.clone(),
            tensor: tensor.name.clone(),
            bits: report.bits,
            elements: tensor.elements(),
            cosine_similarity: figures.cosine_similarity,
            sqnr_db: figures.sqnr_db,
            max_abs_error: figures.max_abs_error,
        });
    }
    let original_bytes: u64 = model.tensors().iter().map(|t| t.bytes).sum();
    let stored_bytes: u64 = other.manifest.stored().map(|file| file.bytes).sum();
    Ok(ValidationReport {
        tensors,
        cosine_similarity: pooled.cosine_similarity(),
        sqnr_db: pooled.sqnr_db(),
        compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
        model_size_mb: stored_bytes as f64 / 1e6,
        layers,
    })
}

fn refuse_uncalibrated(other: &QuantizedModel, path: &Path) -> Result<()> {
    if other.manifest.tables.is_empty() {
        let message = format!(
            "`{}` was quantized without a calibration: leave it out, or quantize the model with it",
            path.display()
        );
        return Err(QuantError::Validation { tensor: None, message });
    }
    Ok(())
}

/// The quality of all layers of a calibration.
async fn layers(
    ctx: &SessionContext,
    model: &Arc<Model>,
    other: &QuantizedModel,
    calibration: &Arc<Calibration>,
    threads: usize,
) -> Result<Vec<LayerQuality>> {
    let tensors = calibration.tensors(model)?;
    let mut errors = Vec::with_capacity(tensors.len());
    for (tensor, range) in &tensors {
        let channels = calibration.states(range)[0].channels();
        errors.push(channel_errors(ctx, &model.tensors()[*tensor], channels).await?);
    }
    let count = tensors.len();
    let (model, calibration, stored) = (Arc::clone(model), Arc::clone(calibration), other.calibration.clone());
    let measured = on_threads(threads, count, move |at| {
        let (tensor, range) = &tensors[at];
        let states = calibration.states(range);
        let weights = LayerWeights::read(&model.tensors()[*tensor], states[0].channels(), None)?;
        states.iter().map(|layer| stored.quality(layer, &weights, &errors[at])).collect::<Result<Vec<_>>>()
    });
    Ok(measured.await?.into_iter().flatten().collect())
}

/// The sums of the squared errors of a tensor's weights, by input channel.
async fn channel_errors(ctx: &SessionContext, tensor: &Tensor, channels: usize) -> Result<Vec<f64>> {
    let isa = Isa::active()?;
    let weights = |schema: &str, name: &str| {
        let of_tensor = col("component").eq(lit(tensor.component.as_str())).and(col("tensor").eq(lit(&tensor.name)));
        let columns = [col("chunk"), col("weights").alias(name)];
        let table = ctx.table(TableReference::partial(schema.to_string(), "weights"));
        async move { table.await?.filter(of_tensor)?.select(columns) }
    };
    let (original, restored) = (weights("original", "a").await?, weights("quantized_model", "b").await?);
    let restored = restored.with_column_renamed("chunk", "same_chunk")?;
    let pairs = original.join(restored, JoinType::Inner, &["chunk"], &["same_chunk"], None)?;
    let mut stream = pairs.select_columns(&["a", "b"])?.execute_stream().await?;
    let row = tensor.row_length() as usize;
    let mut sums = vec![0.0; channels];
    while let Some(batch) = stream.try_next().await? {
        for index in 0..batch.num_rows() {
            let floats = |column: usize| {
                let value = batch.column(column).as_struct();
                let text = value.column_by_name("dtype").map(|dtypes| dtypes.as_string::<i32>().value(index));
                let bytes = value.column_by_name("data").map(|data| data.as_binary_view().value(index));
                let (Some(dtype), Some(bytes)) = (text.and_then(|text| text.parse().ok()), bytes) else {
                    return Err(QuantError::configuration(format!("{}: its weights are none", tensor.name)));
                };
                Ok(to_f32(isa, Weights::new(dtype, bytes, row)?))
            };
            for (a, b) in floats(0)?.chunks_exact(row).zip(floats(1)?.chunks_exact(row)) {
                let kernel = row / channels;
                for (sum, (a, b)) in sums.iter_mut().zip(a.chunks_exact(kernel).zip(b.chunks_exact(kernel))) {
                    *sum += a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                }
            }
        }
    }
    Ok(sums)
}

/// Checks that the files of a quantized model have the content that it says they have.
///
/// # Errors
/// If there is none at the path, or a file is another than was written.
pub async fn verify_model(path: &Path) -> Result<()> {
    QuantizedModel::open(path)?.verify().await
}

/// The figures of one tensor, as the query gives them.
struct Figures {
    cosine_similarity: Option<f64>,
    sqnr_db: Option<f64>,
    max_abs_error: Option<f64>,
    original_rms: f64,
    quantized_rms: f64,
}

async fn measure(ctx: &SessionContext) -> Result<HashMap<(String, String), Figures>> {
    let mut measured = HashMap::new();
    for batch in ctx.sql(QUERY).await?.collect().await? {
        let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_string();
        let float = |column: usize, row: usize| {
            let column = batch.column(column).as_primitive::<Float64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        for row in 0..batch.num_rows() {
            let figures = Figures {
                cosine_similarity: float(2, row),
                sqnr_db: float(3, row),
                max_abs_error: float(4, row),
                original_rms: float(5, row).unwrap_or(f64::NAN),
                quantized_rms: float(6, row).unwrap_or(f64::NAN),
            };
            measured.insert((text(0, row), text(1, row)), figures);
        }
    }
    Ok(measured)
}

/// The sums of many tensors, got back from their figures.
#[derive(Default)]
struct Pooled {
    aa: f64,
    bb: f64,
    ab: f64,
    ee: f64,
}

impl Pooled {
    fn add(&mut self, elements: u64, figures: &Figures) {
        let aa = figures.original_rms.powi(2) * elements as f64;
        let bb = figures.quantized_rms.powi(2) * elements as f64;
        self.aa += aa;
        self.bb += bb;
        self.ab += figures.cosine_similarity.unwrap_or(0.0) * (aa * bb).sqrt();
        let rms_error = figures.sqnr_db.filter(|db| *db > f64::NEG_INFINITY);
        self.ee += rms_error.map_or(bb, |db| aa / 10f64.powf(db / 10.0));
    }

    fn cosine_similarity(&self) -> Option<f64> {
        finite(self.ab / (self.aa * self.bb).sqrt()).map(|cosine| cosine.clamp(-1.0, 1.0))
    }

    fn sqnr_db(&self) -> Option<f64> {
        finite(10.0 * (self.aa / self.ee).log10())
    }
}

/// What became of each of the model's tensors, in its order.
fn same_tensors<'a>(model: &Model, other: &'a QuantizedModel) -> Result<Vec<&'a TensorReport>> {
    let mut theirs: HashMap<_, _> =
        other.manifest.tensors.iter().map(|t| ((t.component.as_str(), t.tensor.as_str()), t)).collect();
    let mut reports = Vec::with_capacity(theirs.len());
    for tensor in model.tensors() {
        let name = full_name(&tensor.component, &tensor.name);
        let message = match theirs.remove(&(tensor.component.as_str(), tensor.name.as_str())) {
            Some(report) if report.shape == tensor.shape => {
                reports.push(report);
                continue;
            }
            Some(report) => format!(
                "{name} has shape {:?} in the original and {:?} in the quantized model: they are not the same model",
                tensor.shape, report.shape
            ),
            None => format!("{name} is missing from the quantized model: they are not the same model"),
        };
        return Err(QuantError::ShapeMismatch { tensor: name, message });
    }
    match theirs.keys().min() {
        Some((component, tensor)) => {
            let name = full_name(component, tensor);
            let message = format!("{name} is missing from the original: they are not the same model");
            Err(QuantError::ShapeMismatch { tensor: name, message })
        }
        None => Ok(reports),
    }
}
