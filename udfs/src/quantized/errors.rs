//! The error sums inside quantized values.

use arrow::array::{Array, AsArray, Float64Array, Int64Array, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use arrow_quant_kernels::PairSums;
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err};

use super::column::{check_fields, missing, required};
use super::{COUNT, SUMS};
use crate::tensor::column;

/// The error sums of quantized values.
pub(crate) struct ErrorColumn {
    function: &'static str,
    nulls: Option<NullBuffer>,
    /// Of `errors` itself.
    errors: Option<NullBuffer>,
    n: Int64Array,
    sums: [Float64Array; 5],
}

impl ErrorColumn {
    /// Fails at planning for a type without error sums.
    pub(crate) fn check(function: &str, data_type: &DataType) -> Result<()> {
        check_fields(function, data_type, &["errors"])?;
        let fields = match data_type {
            DataType::Struct(fields) => &fields[..],
            _ => &[],
        };
        match fields.iter().find(|field| field.name() == "errors").map(|errors| errors.data_type()) {
            None => Ok(()),
            Some(DataType::Struct(sums)) if missing(sums, &[COUNT]).is_empty() && missing(sums, &SUMS).is_empty() => {
                Ok(())
            }
            Some(other) => plan_err!(
                "{function} expects the field errors of a quantized value to be a struct of {COUNT}, {}, found {other}",
                SUMS.join(", ")
            ),
        }
    }

    pub(crate) fn try_new(function: &'static str, array: &StructArray) -> Result<Self> {
        let Some(errors) = array.column_by_name("errors").and_then(|errors| errors.as_struct_opt()) else {
            return exec_err!("{function}: the quantized value has no error sums");
        };
        let sum =
            |name| -> Result<Float64Array> { Ok(column(errors, name, &DataType::Float64)?.as_primitive().clone()) };
        let [ww, qq, wq, ee, max] = SUMS;
        Ok(Self {
            function,
            nulls: array.nulls().cloned(),
            errors: errors.nulls().cloned(),
            n: column(errors, COUNT, &DataType::Int64)?.as_primitive().clone(),
            sums: [sum(ww)?, sum(qq)?, sum(wq)?, sum(ee)?, sum(max)?],
        })
    }

    /// The sums in a row; `None` if the value is NULL.
    ///
    /// # Errors
    /// If the value is not NULL and one of them is, or their number is negative.
    pub(crate) fn row(&self, row: usize) -> Result<Option<PairSums>> {
        let is_null = |nulls: &Option<NullBuffer>| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        if is_null(&self.nulls) {
            return Ok(None);
        }
        let function = self.function;
        if is_null(&self.errors) {
            return exec_err!("{function}, row {row}: errors is NULL in a quantized value that is not NULL");
        }
        let n = required(function, row, COUNT, &self.n)?;
        let n = u64::try_from(n)
            .map_err(|_| exec_datafusion_err!("{function}, row {row}: {n} is not a count of weights"))?;
        let mut sums = [0.0; 5];
        for ((sum, name), array) in sums.iter_mut().zip(SUMS).zip(&self.sums) {
            *sum = required(function, row, name, array)?;
        }
        let [sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error] = sums;
        Ok(Some(PairSums { n, sum_aa, sum_bb, sum_ab, sum_ee, max_abs_error }))
    }
}

/// The error sums inside quantized values, `None` for NULL.
///
/// # Errors
/// If the array holds no quantized values, or a value that is not NULL lacks a sum.
pub fn error_sums(quantized: &StructArray) -> Result<Vec<Option<PairSums>>> {
    let column = ErrorColumn::try_new("error_sums", quantized)?;
    (0..quantized.len()).map(|row| column.row(row)).collect()
}
