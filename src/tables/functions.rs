//! `tensors('path')`, `weights('path')`, `quantized('path')`, `time_groups('path', groups)` and `importance('path')` in a FROM
//! clause, and
//! `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{
    Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider, TableProviderFactory,
};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{CreateExternalTable, Expr};

use super::{AnyModel, default_name, table_of};
use crate::Calibration;
use crate::model::MANIFEST;
use crate::{DiffusionQuantConfig, QuantError};

/// The table functions.
pub(crate) fn table_functions() -> Vec<Arc<TableFunction>> {
    [Table::Tensors, Table::Weights, Table::Quantized]
        .into_iter()
        .map(|table| TableFunction::new(table.name().to_string(), Arc::new(table)))
        .chain([
            TableFunction::new(TIME_GROUPS.to_string(), Arc::new(TimeGroups)),
            TableFunction::new(IMPORTANCE.to_string(), Arc::new(Importance)),
        ])
        .map(Arc::new)
        .collect()
}

const TIME_GROUPS: &str = "time_groups";

/// `time_groups('calibration.parquet' [, groups [, boundaries]])`: how the inputs of each layer are quantized in each group of
/// timesteps.
#[derive(Debug)]
struct TimeGroups;

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
        let calibration = Calibration::open(path, config.calibration_samples)?;
        Ok(table_of(calibration.activations(config.grouping()?)?)?)
    }
}

const IMPORTANCE: &str = "importance";

/// `importance('calibration.parquet')`: how much each input channel of each layer counts.
#[derive(Debug)]
struct Importance;

impl TableFunctionImpl for Importance {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let (path, []) = calibration_path(IMPORTANCE, args.exprs())? else {
            return plan_err!("{IMPORTANCE} expects the path of a calibration table and nothing else");
        };
        let calibration = Calibration::open(path, DiffusionQuantConfig::default().calibration_samples)?;
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

/// One of a model's tables.
#[derive(Debug, Clone, Copy)]
enum Table {
    Tensors,
    Weights,
    Quantized,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Tensors => "tensors",
            Self::Weights => "weights",
            Self::Quantized => "quantized",
        }
    }

    fn open(self, path: &str) -> crate::Result<Arc<dyn TableProvider>> {
        let path = Path::new(path);
        let (name, model) = (default_name(path), AnyModel::open(path)?);
        match self {
            Self::Tensors => model.tensors(&name),
            Self::Weights => model.weights(&name),
            Self::Quantized => model.quantized(&name)?.ok_or_else(|| QuantError::ModelNotFound {
                path: path.to_path_buf(),
                message: format!(
                    "`{}` is not a quantized model (it has no {MANIFEST}): read it with weights('...'), or quantize it first",
                    path.display()
                ),
            }),
        }
    }
}

impl TableFunctionImpl for Table {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        match args.exprs() {
            [Expr::Literal(ScalarValue::Utf8(Some(path)) | ScalarValue::Utf8View(Some(path)), _)] => {
                Ok(self.open(path)?)
            }
            _ => plan_err!("{0} expects one argument, the path of a model as text: {0}('path')", self.name()),
        }
    }
}

/// Makes `weights` tables of `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS LOCATION 'path'`.
#[derive(Debug)]
pub(crate) struct SafetensorsFactory;

#[async_trait]
impl TableProviderFactory for SafetensorsFactory {
    async fn create(&self, _: &dyn Session, command: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        if !command.schema.fields().is_empty() {
            return plan_err!("{}: the columns of a SAFETENSORS table are known, leave them out", command.name);
        }
        let [location] = command.locations.as_slice() else {
            return plan_err!("{}: a SAFETENSORS table has one location, a file or model directory", command.name);
        };
        let model = AnyModel::open(Path::new(location))?;
        Ok(model.weights(command.name.table())?)
    }
}
