//! Validation: a query over the original and the quantized model side by side.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Float64Type;
use arrow_quant_formats::full_name;
use arrow_quant_formats::manifest::{FileEntry, Manifest, Omission, Reason, TensorReport};
use arrow_quant_kernels::{Isa, Weights, to_f32};
use datafusion::catalog::TableProvider;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::calibration::{LayerWeights, StoredCalibration};
use crate::model::{manifest_at, verify_file};
use crate::report::{LayerQuality, TensorQuality, ValidationReport, finite};
use crate::session::{register, register_tables, session_config, with_config};
use crate::tables::{AnyModel, QuantizedModel, table_of};
use crate::targets::TargetName;
use crate::workers::{blocking, on_threads};
use crate::{Calibration, DiffusionQuantConfig, Model, QuantError, Result, ShapeProblem, Tensor, ValidationProblem};

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

/// What the quantized model is called in queries.
const QUANTIZED: &str = "quantized_model";

/// The weights of the layers of a calibration, in pairs.
const LAYERS_QUERY: &str = "
    SELECT o.component, o.tensor, o.weights, q.weights AS restored
    FROM layers l
      JOIN original.weights o ON l.component = o.component AND l.tensor = o.tensor
      JOIN quantized_model.weights q ON o.component = q.component AND o.tensor = q.tensor AND o.chunk = q.chunk";

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
    let (model, other) = open(original, quantized, calibration.clone()).await?;
    other.verify().await?;
    let reports = same_tensors(&model, other.manifest())?;
    let mut config = session_config(threads);
    // The original must stay on the side that the join holds on to.
    config.options_mut().optimizer.join_reordering = false;
    let ctx = with_config(config)?;
    register(&ctx, "original", &AnyModel::Weights(Arc::clone(&model)))?;
    match &other {
        Other::Directory(other) => register(&ctx, QUANTIZED, &AnyModel::Quantized(Arc::clone(other)))?,
        Other::Export { weights, .. } => register_tables(&ctx, QUANTIZED, [("weights", Arc::clone(weights))])?,
    }
    let measured = measure(&ctx).await?;
    let layers = match (&calibration, &other) {
        (Some(calibration), Other::Directory(other)) => layers(&ctx, &model, other, calibration, threads).await?,
        (Some(_) | None, _) => Vec::new(),
    };
    model.check()?;
    let mut pooled = Pooled::default();
    let mut tensors = Vec::new();
    for (tensor, report) in model.tensors().iter().zip(reports) {
        if tensor.float_dtype().is_none() || tensor.elements() == 0 || is_left_out(report) {
            continue;
        }
        let name = full_name(&tensor.component, &tensor.name);
        let Some(figures) = measured.get(&(tensor.component.clone(), tensor.name.clone())) else {
            let problem = ShapeProblem::NoWeights { quantized: quantized.to_path_buf() };
            return Err(QuantError::shape(Some(&name), problem));
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
    let stored_bytes: u64 = other.manifest().stored().map(|file| file.bytes).sum();
    Ok(ValidationReport {
        tensors,
        cosine_similarity: pooled.cosine_similarity(),
        sqnr_db: pooled.sqnr_db(),
        compression_ratio: original_bytes as f64 / stored_bytes.max(1) as f64,
        model_size_mb: stored_bytes as f64 / 1e6,
        layers,
    })
}

/// Opens both models, and checks that a calibration is of them.
async fn open(original: &Path, quantized: &Path, calibration: Option<Arc<Calibration>>) -> Result<(Arc<Model>, Other)> {
    let (original, quantized) = (original.to_path_buf(), quantized.to_path_buf());
    blocking(move || {
        let manifest = manifest_at(&quantized);
        // The weights that were quantized, of those that the original may have several variants of.
        let settings = manifest.as_ref().ok().map(|manifest| &manifest.settings);
        let variant = settings.and_then(|settings| settings.get("variant")?.as_str());
        let model = Arc::new(Model::open_variant(&original, variant)?);
        let other = Other::open(&quantized, manifest?, &model)?;
        if let Some(calibration) = &calibration {
            calibration.refuse_imatrix()?;
            calibration.check(&model)?;
            refuse_uncalibrated(other.manifest(), &quantized)?;
        }
        Ok((model, other))
    })
    .await
}

/// What is compared with the original.
enum Other {
    Directory(Arc<QuantizedModel>),
    /// What was made for another program: a directory with a manifest, or a file with one beside it.
    Export {
        path: PathBuf,
        manifest: Box<Manifest>,
        weights: Arc<dyn TableProvider>,
    },
}

impl Other {
    /// Opens a quantized model that has a manifest and was made of a model. It waits for the disk.
    fn open(path: &Path, manifest: Manifest, model: &Arc<Model>) -> Result<Self> {
        if !manifest.is_export() {
            return Ok(Self::Directory(Arc::new(QuantizedModel::open(path)?)));
        }
        let mut config = DiffusionQuantConfig::default();
        for field in ["format", "architecture", "pre_tokenizer"] {
            if let Some(value) = manifest.settings.get(field) {
                config.set(field, value)?;
            }
        }
        let weights = TargetName::of(&config, Some(path)).target().restored(path, model, &config)?;
        Ok(Self::Export { path: path.to_path_buf(), manifest: Box::new(manifest), weights })
    }

    fn manifest(&self) -> &Manifest {
        match self {
            Self::Directory(other) => other.manifest(),
            Self::Export { manifest, .. } => manifest,
        }
    }

    /// Checks that every file has the content that the manifest tells.
    async fn verify(&self) -> Result<()> {
        match self {
            Self::Directory(other) => other.verify().await,
            Self::Export { path, manifest, .. } => {
                let (path, files) = (path.clone(), manifest.files.clone());
                blocking(move || {
                    let at = |file: &FileEntry| if path.is_file() { path.clone() } else { path.join(&file.path) };
                    files.iter().try_for_each(|file| verify_file(&at(file), Some(&file.sha256)))
                })
                .await
            }
        }
    }
}

fn is_left_out(report: &TensorReport) -> bool {
    // A head that is the embedding is restored from that.
    matches!(report.because.reason(), Reason::LeftOut { why: Omission::Computed | Omission::OtherPart, .. })
}

fn refuse_uncalibrated(manifest: &Manifest, quantized: &Path) -> Result<()> {
    if manifest.tables.is_empty() {
        let problem = ValidationProblem::Uncalibrated { quantized: quantized.to_path_buf() };
        return Err(QuantError::validation(None, problem));
    }
    Ok(())
}

/// The quality of all layers of a calibration.
async fn layers(
    ctx: &SessionContext,
    model: &Arc<Model>,
    other: &Arc<QuantizedModel>,
    calibration: &Arc<Calibration>,
    threads: usize,
) -> Result<Vec<LayerQuality>> {
    let tensors = calibration.tensors(model)?;
    let mut errors = ChannelErrors::new(model, &tensors, calibration);
    errors.measure(ctx).await?;
    let stored = {
        let other = Arc::clone(other);
        blocking(move || StoredCalibration::read(&other)).await?
    };
    let (count, model, calibration) = (tensors.len(), Arc::clone(model), Arc::clone(calibration));
    let measured = on_threads(threads, count, move |at| {
        let (tensor, range) = &tensors[at];
        let states = calibration.states(range);
        let weights = LayerWeights::read(&model.tensors()[*tensor], states[0].channels(), None)?;
        let errors = errors.of(&model.tensors()[*tensor]);
        states.iter().map(|layer| stored.quality(layer, &weights, errors)).collect::<Result<Vec<_>>>()
    });
    Ok(measured.await?.into_iter().flatten().collect())
}

/// The sums of the squared errors of the weights of layers, by input channel.
struct ChannelErrors {
    /// By component and tensor.
    layers: HashMap<(String, String), LayerErrors>,
}

struct LayerErrors {
    /// Weights of a row.
    row: usize,
    /// One sum an input channel.
    sums: Vec<f64>,
}

impl ChannelErrors {
    fn new(model: &Model, tensors: &[(usize, Range<usize>)], calibration: &Calibration) -> Self {
        let layer = |(tensor, range): &(usize, Range<usize>)| {
            let tensor = &model.tensors()[*tensor];
            let sums = vec![0.0; calibration.states(range)[0].channels()];
            let errors = LayerErrors { row: tensor.row_length() as usize, sums };
            ((tensor.component.clone(), tensor.name.clone()), errors)
        };
        Self { layers: tensors.iter().map(layer).collect() }
    }

    fn of(&self, tensor: &Tensor) -> &[f64] {
        let key = (tensor.component.clone(), tensor.name.clone());
        self.layers.get(&key).map_or(&[], |layer| &layer.sums)
    }

    /// Asks one query for the weights of all layers, and adds up as they stream past.
    async fn measure(&mut self, ctx: &SessionContext) -> Result<()> {
        let keys = self.layers.keys();
        let columns: [(&str, ArrayRef); 2] = [
            ("component", Arc::new(StringArray::from_iter_values(keys.clone().map(|(component, _)| component)))),
            ("tensor", Arc::new(StringArray::from_iter_values(keys.map(|(_, tensor)| tensor)))),
        ];
        let layers = table_of(RecordBatch::try_from_iter(columns)?)?;
        ctx.register_table("layers", layers)?;
        let isa = Isa::active()?;
        let mut stream = ctx.sql(LAYERS_QUERY).await?.execute_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            let names = [0, 1].map(|column| batch.column(column).as_string::<i32>());
            for row in 0..batch.num_rows() {
                let key = (names[0].value(row).to_string(), names[1].value(row).to_string());
                let Some(layer) = self.layers.get_mut(&key) else { continue };
                let original = floats(isa, batch.column(2), row, layer.row)?;
                let restored = floats(isa, batch.column(3), row, layer.row)?;
                layer.add(&original, &restored);
            }
        }
        Ok(())
    }
}

impl LayerErrors {
    /// Adds the errors of some rows.
    fn add(&mut self, original: &[f32], restored: &[f32]) {
        let kernel = self.row / self.sums.len();
        for (a, b) in original.chunks_exact(self.row).zip(restored.chunks_exact(self.row)) {
            for (sum, (a, b)) in self.sums.iter_mut().zip(a.chunks_exact(kernel).zip(b.chunks_exact(kernel))) {
                *sum += a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
        }
    }
}

/// The floats of a tensor value.
fn floats(isa: Isa, values: &ArrayRef, index: usize, row: usize) -> Result<Vec<f32>> {
    let value = values.as_struct();
    let text = value.column_by_name("dtype").map(|dtypes| dtypes.as_string::<i32>().value(index));
    let bytes = value.column_by_name("data").map(|data| data.as_binary_view().value(index));
    let (Some(dtype), Some(bytes)) = (text.and_then(|text| text.parse().ok()), bytes) else {
        return Err(QuantError::configuration("a layer's weights are not floating-point numbers"));
    };
    Ok(to_f32(isa, Weights::new(dtype, bytes, row)?))
}

/// Checks that the files of a quantized model have the content that it says they have.
///
/// # Errors
/// If there is none at the path, or a file is another than was written.
pub async fn verify_model(path: &Path) -> Result<()> {
    let path = path.to_path_buf();
    let directory = {
        let path = path.clone();
        blocking(move || if path.is_file() { Ok(None) } else { QuantizedModel::open(&path).map(Some) }).await?
    };
    match directory {
        Some(directory) => directory.verify().await,
        None => {
            let verify = move || verify_file(&path, manifest_at(&path)?.files.first().map(|file| file.sha256.as_str()));
            blocking(verify).await
        }
    }
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
fn same_tensors<'a>(model: &Model, manifest: &'a Manifest) -> Result<Vec<&'a TensorReport>> {
    let mut theirs: HashMap<_, _> =
        manifest.tensors.iter().map(|t| ((t.component.as_str(), t.tensor.as_str()), t)).collect();
    let mut reports = Vec::with_capacity(theirs.len());
    for tensor in model.tensors() {
        let problem = match theirs.remove(&(tensor.component.as_str(), tensor.name.as_str())) {
            Some(report) if report.shape == tensor.shape => {
                reports.push(report);
                continue;
            }
            Some(report) => ShapeProblem::Differs { original: tensor.shape.clone(), quantized: report.shape.clone() },
            None => ShapeProblem::NotInQuantized,
        };
        return Err(QuantError::shape(Some(&full_name(&tensor.component, &tensor.name)), problem));
    }
    match theirs.keys().min() {
        Some((component, tensor)) => {
            Err(QuantError::shape(Some(&full_name(component, tensor)), ShapeProblem::NotInOriginal))
        }
        None => Ok(reports),
    }
}
