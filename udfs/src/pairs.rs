//! The sums over pairs that all measures of likeness share: of two tensor values, or inside one quantized value.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use arrow_quant_kernels::{Isa, PairSums};
use datafusion::common::{Result, exec_datafusion_err, plan_err};

use crate::cancellation::Cancellation;
use crate::quantized::ErrorColumn;
use crate::slices::pair_sums_of;
use crate::tensor::{Row, TensorColumn, kernel_error};

/// A figure that follows from the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Figure {
    CosineSimilarity,
    Sqnr,
    MaxAbsError,
}

impl Figure {
    /// The figure; `None` where it is not defined.
    pub(crate) fn of(self, sums: &PairSums) -> Option<f64> {
        match self {
            Self::CosineSimilarity => sums.cosine_similarity(),
            Self::Sqnr => (sums.n > 0 && (sums.sum_aa != 0.0 || sums.sum_ee != 0.0)).then(|| sums.sqnr_db()),
            Self::MaxAbsError => (sums.n > 0).then_some(sums.max_abs_error),
        }
    }
}

/// The types to read the arguments as. Fails at planning unless they are two tensor values or one quantized value.
pub(crate) fn read_as(function: &str, types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [quantized] => ErrorColumn::check(function, quantized).map(|()| types.to_vec()),
        [a, b] => Ok(vec![
            TensorColumn::coerce(function, "its first argument", a)?,
            TensorColumn::coerce(function, "its second argument", b)?,
        ]),
        _ => plan_err!("{function} expects two tensor values or one quantized value, found {} arguments", types.len()),
    }
}

/// The arguments of a measure, row by row.
pub(crate) enum Pairs {
    Tensors { function: &'static str, isa: Isa, sides: Box<[TensorColumn; 2]> },
    Quantized(Box<ErrorColumn>),
    Nulls,
}

impl Pairs {
    pub(crate) fn try_new(function: &'static str, args: &[ArrayRef]) -> Result<Self> {
        if args.len() == 1 {
            return match args[0].data_type() {
                DataType::Null => Ok(Self::Nulls),
                _ => Ok(Self::Quantized(Box::new(ErrorColumn::try_new(function, args[0].as_struct())?))),
            };
        }
        Ok(Self::Tensors {
            function,
            isa: active_isa()?,
            sides: Box::new([TensorColumn::try_new(function, &args[0])?, TensorColumn::try_new(function, &args[1])?]),
        })
    }

    /// The sums in a row; `None` if either side is NULL or a list with a NULL element.
    pub(crate) fn row(&self, row: usize, cancellation: &Cancellation) -> Result<Option<PairSums>> {
        match self {
            Self::Nulls => Ok(None),
            Self::Quantized(errors) => errors.row(row),
            Self::Tensors { function, isa, sides } => match (sides[0].row(row)?, sides[1].row(row)?) {
                (Some(Row::Weights(a)), Some(Row::Weights(b))) => {
                    pair_sums_of(*isa, a, b, cancellation).map(Some).map_err(|e| kernel_error(function, row, e))
                }
                _ => Ok(None),
            },
        }
    }
}

/// The instruction set that all functions use.
pub(crate) fn active_isa() -> Result<Isa> {
    Isa::active().map_err(|e| exec_datafusion_err!("{e}"))
}
