//! ArrowQuant: model weights are a table, quantizing a model is a SQL query over it, validating it is another.
//!
//! - [`Model`] opens safetensors files and directories; [`session`] makes a DataFusion session in which they are tables
//!   ([`register_model`], or `weights('path')`, `tensors('path')`, `quantized('path')` in SQL) and the functions of
//!   [`arrow_quant_udfs`] are registered.
//! - [`quantize_model`] runs the query that quantizes a model and writes a quantized model directory;
//!   [`quantize_query`] does so with what any query gives; [`validate_model`] runs the one that compares such a directory
//!   with its original.
//!
//! ```no_run
//! # async fn run() -> arrow_quant_v2::Result<()> {
//! use arrow_quant_v2::{DeploymentProfile, DiffusionQuantConfig, JobOptions, quantize_model};
//! use std::path::Path;
//!
//! let config = DiffusionQuantConfig::from_profile(DeploymentProfile::Local);
//! let done = quantize_model(Path::new("dream-7b"), Path::new("dream-7b-int4"), &config, &JobOptions::default()).await?;
//! println!("{:.1}x smaller", done.report.totals.compression_ratio);
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod arrays;
mod calibration;
pub mod config;
mod disk;
mod error;
mod job;
mod model;
mod plan;
mod report;
mod session;
mod tables;
mod targets;
mod threads;
mod workers;

pub use arrays::{QuantizedData, TensorData, quantized_row_schema};
pub use arrow_quant_formats::directory::{LeftOut, Why};
pub use arrow_quant_formats::manifest::{Attempt, LayerReport, Reason, RecordedReason, TensorReport, Totals, grouping};
pub use arrow_quant_formats::schemes::{QuantizationScheme, QuantizedSource, Sign};
pub use arrow_quant_kernels::{Bits, BlockType, GroupSize, Scheme};
pub use arrow_quant_stores::AllowedPaths;
pub use calibration::Calibration;
pub use config::{
    ConfigLayers, DeploymentProfile, DiffusionQuantConfig, FIELDS, LayeredConfig, Method, Modality, Origin, WeightType,
    Width,
};
pub use error::{
    About, FieldNames, Held, Kind, Literals, OutputProblem, QuantError, Result, SettingProblem, ShapeProblem,
    ValidationProblem, Words,
};
pub use job::{
    JobOptions, export_model, inspect_model, plan_model, plan_query, quantize_model, quantize_query, register_copy,
    unfinished_run, validate_model, verify_model,
};
pub use model::{Model, Tensor};
pub use report::{
    Below, InspectedTensor, Inspection, LayerQuality, ModelReport, OnProgress, PlanReport, PlannedTensor, Progress,
    QuantizeReport, Stage, TensorQuality, ValidationReport, numbers, readable,
};
pub use session::{model_name, plan_statement, register, register_model, service_session, session};
pub use tables::AnyModel;
pub use targets::{FormatReport, Runtime, TargetName, formats};
pub use threads::{Started, start_runtime};
pub use workers::blocking;
