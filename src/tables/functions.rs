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
use crate::calibration::Grouping;
use crate::model::MANIFEST;
use crate::{AllowedPaths, DiffusionQuantConfig, QuantError};

/// The table functions. They open what is allowed, or without `allowed` everything.
pub(crate) fn table_functions(allowed: Option<Arc<AllowedPaths>>) -> Vec<Arc<TableFunction>> {
    let files = Files(allowed);
    [Table::Tensors, Table::Weights, Table::Quantized]
        .into_iter()
        .map(|table| TableFunction::new(table.name().to_string(), Arc::new(ModelTable { table, files: files.clone() })))
        .chain([
            TableFunction::new(TIME_GROUPS.to_string(), Arc::new(TimeGroups(files.clone()))),
            TableFunction::new(IMPORTANCE.to_string(), Arc::new(Importance(files.clone()))),
        ])
        .map(Arc::new)
        .collect()
}

/// The files that statements may open: what is allowed, or all.
#[derive(Debug, Clone)]
struct Files(Option<Arc<AllowedPaths>>);

impl Files {
    /// Opens what is at a path of a statement.
    fn open<T>(&self, path: &str, open: impl FnOnce(&Path) -> crate::Result<T>) -> crate::Result<T> {
        let asked = Path::new(path);
        let Some(allowed) = &self.0 else { return open(asked) };
        let real = allowed.check_input(asked)?;
        open(&real).map_err(|error| error.told_as(&real, asked))
    }
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
        let calibration = self.0.open(path, |path| Calibration::open(path, config.calibration_samples))?;
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
        let calibration = self.0.open(path, |path| Calibration::open(path, samples))?;
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

    fn open(self, files: &Files, path: &str) -> crate::Result<Arc<dyn TableProvider>> {
        let model = files.open(path, AnyModel::open)?;
        let path = Path::new(path);
        let name = default_name(path);
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

/// The function that gives it.
#[derive(Debug)]
struct ModelTable {
    table: Table,
    files: Files,
}

impl TableFunctionImpl for ModelTable {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        match args.exprs() {
            [Expr::Literal(ScalarValue::Utf8(Some(path)) | ScalarValue::Utf8View(Some(path)), _)] => {
                Ok(self.table.open(&self.files, path)?)
            }
            _ => plan_err!("{0} expects one argument, the path of a model as text: {0}('path')", self.table.name()),
        }
    }
}

/// Makes `weights` tables of `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS LOCATION 'path'`.
#[derive(Debug)]
pub(crate) struct SafetensorsFactory(Files);

impl SafetensorsFactory {
    /// Of what is allowed, or of everything.
    pub fn new(allowed: Option<Arc<AllowedPaths>>) -> Self {
        Self(Files(allowed))
    }
}

#[async_trait]
impl TableProviderFactory for SafetensorsFactory {
    async fn create(&self, _: &dyn Session, command: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        if !command.schema.fields().is_empty() {
            return plan_err!("{}: the columns of a SAFETENSORS table are known, leave them out", command.name);
        }
        let [location] = command.locations.as_slice() else {
            return plan_err!("{}: a SAFETENSORS table has one location, a file or model directory", command.name);
        };
        let model = self.0.open(location, AnyModel::open)?;
        Ok(model.weights(command.name.table())?)
    }
}
