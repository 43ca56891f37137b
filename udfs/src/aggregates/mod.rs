//! The aggregate functions.

pub(crate) mod similarity;
pub(crate) mod tensor_stats;

mod sums;

use datafusion::common::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::AggregateFunctionSimplification;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{AggregateUDF, AggregateUDFImpl, Expr};

use crate::cancellation::Cancellation;

/// How the optimizer makes an aggregate one of its query, with the query's cancellation: accumulators are not told of
/// their query otherwise. `None` if the aggregate is one of a query already.
pub(crate) fn bound<F: AggregateUDFImpl + Clone + 'static>(
    unbound: &F,
    cancellation: Option<&Cancellation>,
    bind: fn(F, Option<Cancellation>) -> F,
) -> Option<AggregateFunctionSimplification> {
    if cancellation.is_some() {
        return None;
    }
    let unbound = unbound.clone();
    Some(Box::new(move |call: AggregateFunction, context: &SimplifyContext| -> Result<Expr> {
        let cancellation = Cancellation::of(context.config_options());
        let func = AggregateUDF::new_from_impl(bind(unbound.clone(), Some(cancellation))).into();
        Ok(Expr::AggregateFunction(AggregateFunction { func, params: call.params }))
    }))
}
