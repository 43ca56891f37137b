//! `tensors('path')`, `weights('path')`, `quantized('path')` and `time_groups('path', groups)` in a FROM clause, and
//! `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{
    Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider, TableProviderFactory,
};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{CreateExternalTable, Expr};

use super::{AnyModel, default_name};
use crate::calibration::{Calibration, activation_schema};
use crate::model::MANIFEST;
use crate::{DiffusionQuantConfig, QuantError};

/// The table functions.
pub(crate) fn table_functions() -> Vec<Arc<TableFunction>> {
    [Table::Tensors, Table::Weights, Table::Quantized]
        .into_iter()
        .map(|table| TableFunction::new(table.name().to_string(), Arc::new(table)))
        .chain([TableFunction::new(TIME_GROUPS.to_string(), Arc::new(TimeGroups))])
        .map(Arc::new)
        .collect()
}

const TIME_GROUPS: &str = "time_groups";

/// `time_groups('calibration.parquet' [, groups])`: how the inputs of each layer are quantized in each group of timesteps.
#[derive(Debug)]
struct TimeGroups;

impl TableFunctionImpl for TimeGroups {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let defaults = DiffusionQuantConfig::default();
        let (path, groups) = match args.exprs() {
            [path] => (path, defaults.num_time_groups),
            [path, Expr::Literal(ScalarValue::Int64(Some(groups)), _)] => (path, *groups),
            _ => return plan_err!("{TIME_GROUPS} expects the path of a calibration table, and a number of groups"),
        };
        let Expr::Literal(ScalarValue::Utf8(Some(path)) | ScalarValue::Utf8View(Some(path)), _) = path else {
            return plan_err!("{TIME_GROUPS} expects the path of a calibration table as text: {TIME_GROUPS}('path')");
        };
        let mut config = defaults;
        config.set("num_time_groups", &groups.into())?;
        let calibration = Calibration::open(path, config.calibration_samples)?;
        let batch = calibration.activations(groups as usize)?;
        Ok(Arc::new(MemTable::try_new(activation_schema(), vec![vec![batch]])?))
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
