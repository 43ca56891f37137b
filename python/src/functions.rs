//! The functions, for a stock `datafusion` session of the same major version.

use std::sync::Arc;

use arrow_quant_udfs::{aggregate_functions as aggregates, scalar_functions as scalars};
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion_ffi::udaf::FFI_AggregateUDF;
use datafusion_ffi::udf::FFI_ScalarUDF;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

/// A scalar function, for datafusion.udf.
#[pyclass(module = "arrow_quant_v2.functions", frozen)]
struct ScalarFunction(Arc<ScalarUDF>);

#[pymethods]
impl ScalarFunction {
    /// Its name in SQL.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    fn __datafusion_scalar_udf__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        refuse_other_versions(py)?;
        PyCapsule::new_with_value(py, FFI_ScalarUDF::from(Arc::clone(&self.0)), c"datafusion_scalar_udf")
    }

    fn __repr__(&self) -> String {
        format!("ScalarFunction({})", self.0.name())
    }
}

/// An aggregate function, for datafusion.udaf.
#[pyclass(module = "arrow_quant_v2.functions", frozen)]
struct AggregateFunction(Arc<AggregateUDF>);

#[pymethods]
impl AggregateFunction {
    /// Its name in SQL.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    fn __datafusion_aggregate_udf__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        refuse_other_versions(py)?;
        PyCapsule::new_with_value(py, FFI_AggregateUDF::from(Arc::clone(&self.0)), c"datafusion_aggregate_udf")
    }

    fn __repr__(&self) -> String {
        format!("AggregateFunction({})", self.0.name())
    }
}

/// The capsules do not say of which version they are.
fn refuse_other_versions(py: Python<'_>) -> PyResult<()> {
    py.import("arrow_quant_v2.functions")?.call_method0("refuse_other_versions").map(drop)
}

/// Every scalar function.
#[pyfunction]
fn scalar_functions() -> Vec<ScalarFunction> {
    scalars().into_iter().map(ScalarFunction).collect()
}

/// Every aggregate function.
#[pyfunction]
fn aggregate_functions() -> Vec<AggregateFunction> {
    aggregates().into_iter().map(AggregateFunction).collect()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ScalarFunction>()?;
    module.add_class::<AggregateFunction>()?;
    module.add_function(wrap_pyfunction!(scalar_functions, module)?)?;
    module.add_function(wrap_pyfunction!(aggregate_functions, module)?)
}
