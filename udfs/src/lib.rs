//! DataFusion functions over model weights: quantize them, restore them, measure what was lost.
//!
//! [`register_all`] loads them into any DataFusion session; nothing else of ArrowQuant is needed.
//!
//! ```
//! # use datafusion::prelude::SessionContext;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> datafusion::error::Result<()> {
//! let mut ctx = SessionContext::new();
//! arrow_quant_udfs::register_all(&mut ctx)?;
//! let similar = ctx.sql("SELECT cosine_similarity([1.0, 2.0, 3.0], [1.0, 2.0, 3.5]) > 0.99").await?.collect().await?;
//! # assert_eq!(similar[0].num_rows(), 1);
//! # Ok(()) }
//! ```
//!
//! A function that returns a struct is evaluated once for each field read, unless the session sets
//! `datafusion.optimizer.enable_leaf_expression_pushdown = false`; sessions that read several fields of
//! `quantize(...)` should.

#![forbid(unsafe_code)]

mod aggregates;
mod arguments;
mod cancellation;
mod functions;
mod pairs;
mod quantized;
mod reference;
mod slices;
mod tensor;

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

pub use cancellation::{Cancellation, Cancelled};
pub use functions::quantize::{Factors, quantize_with_feedback};
pub use quantized::{
    QuantizedColumn, QuantizedValue, ValueRef, error_sums, quantized_array, quantized_type, with_encoding,
};
pub use reference::sql_reference;
pub use tensor::{RowError, tensor_type, tensor_value};

/// Every scalar function.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Arc::new(functions::quantize::Quantize::new().into()),
        Arc::new(functions::dequantize::Dequantize::new().into()),
        Arc::new(functions::scale_channels::ScaleChannels::new().into()),
        Arc::new(functions::weighted_sum::WeightedSum::new().into()),
        Arc::new(functions::to_floats::ToFloats::new().into()),
        Arc::new(functions::similarity::cosine_similarity()),
        Arc::new(functions::similarity::sqnr()),
        Arc::new(functions::similarity::max_abs_error()),
        Arc::new(functions::tensor_stats::TensorStats::new().into()),
    ]
}

/// Every aggregate function.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(aggregates::similarity::cosine_similarity_agg()),
        Arc::new(aggregates::similarity::sqnr_agg()),
        Arc::new(aggregates::similarity::max_abs_error_agg()),
        Arc::new(aggregates::tensor_stats::TensorStatsAgg::new().into()),
    ]
}

/// Registers every function.
///
/// # Errors
/// If the registry refuses one.
pub fn register_all(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for function in scalar_functions() {
        registry.register_udf(function)?;
    }
    for function in aggregate_functions() {
        registry.register_udaf(function)?;
    }
    Ok(())
}
