//! `time_groups('path' [, groups [, boundaries]])` and `importance('path')` in a FROM clause.

use std::sync::Arc;

use datafusion::catalog::{TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::Expr;

use super::Grouping;
use crate::tables::{Files, table_of};
use crate::workers::in_place;
use crate::{Calibration, DiffusionQuantConfig};

/// The table functions over the calibration tables that `files` opens.
pub(crate) fn table_functions(files: &Files) -> Vec<Arc<TableFunction>> {
    vec![
        Arc::new(TableFunction::new(TIME_GROUPS.to_string(), Arc::new(TimeGroups(files.clone())))),
        Arc::new(TableFunction::new(IMPORTANCE.to_string(), Arc::new(Importance(files.clone())))),
    ]
}

const TIME_GROUPS: &str = "time_groups";

/// `time_groups('calibration.parquet' [, groups [, boundaries]])`: how the inputs of each layer are quantized in each group of
/// timesteps.
#[derive(Debug)]
struct TimeGroups(Files);

impl TableFunctionImpl for TimeGroups {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let mut config = DiffusionQuantConfig::default();
        let (path, options) = calibration_path(TIME_GROUPS, args.exprs())?;
        for (option, field) in options.iter().zip(["num_time_groups", "time_group_boundaries"]) {
            let value = match option {
                Expr::Literal(ScalarValue::Int64(Some(groups)), _) => (*groups).into(),
                Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => {
                    text.as_str().into()
                }
                other => return plan_err!("{TIME_GROUPS} expects {field} as a literal, found {other}"),
            };
            config.set(field, &value)?;
        }
        if options.len() > 2 {
            return plan_err!("{TIME_GROUPS} expects 1 to 3 arguments (path [, groups [, boundaries]])");
        }
        let samples = config.calibration_samples;
        let calibration = in_place(|| self.0.open(path, |path| Calibration::open(path, samples)))?;
        Ok(table_of(calibration.activations(Grouping::of(&config))?)?)
    }
}

const IMPORTANCE: &str = "importance";

/// `importance('calibration.parquet')`: how much each input channel of each layer counts.
#[derive(Debug)]
struct Importance(Files);

impl TableFunctionImpl for Importance {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let (path, []) = calibration_path(IMPORTANCE, args.exprs())? else {
            return plan_err!("{IMPORTANCE} expects the path of a calibration table and nothing else");
        };
        let samples = DiffusionQuantConfig::default().calibration_samples;
        let calibration = in_place(|| self.0.open(path, |path| Calibration::open(path, samples)))?;
        Ok(table_of(calibration.importance()?)?)
    }
}

/// The path that is the first argument of a table function, and the other arguments.
fn calibration_path<'a>(function: &str, arguments: &'a [Expr]) -> Result<(&'a str, &'a [Expr])> {
    match arguments {
        [Expr::Literal(ScalarValue::Utf8(Some(path)) | ScalarValue::Utf8View(Some(path)), _), options @ ..] => {
            Ok((path, options))
        }
        _ => plan_err!("{function} expects the path of a calibration table as text: {function}('path')"),
    }
}
