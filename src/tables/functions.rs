//! `tensors('path')`, `weights('path')` and `quantized('path')` in a FROM clause, and `CREATE EXTERNAL TABLE ... STORED AS
//! SAFETENSORS`.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::directory::Missing;
use arrow_quant_stores::AllowedPaths;
use async_trait::async_trait;
use datafusion::catalog::{
    Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider, TableProviderFactory,
};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{CreateExternalTable, Expr};

use super::{AnyModel, default_name};
use crate::QuantError;
use crate::workers::{blocking, in_place};

/// The table functions over the models that `files` opens.
pub(crate) fn table_functions(files: &Files) -> Vec<Arc<TableFunction>> {
    [Table::Tensors, Table::Weights, Table::Quantized]
        .into_iter()
        .map(|table| TableFunction::new(table.name().to_string(), Arc::new(ModelTable { table, files: files.clone() })))
        .map(Arc::new)
        .collect()
}

/// The files that statements may open: what is allowed, or without that everything.
#[derive(Debug, Clone)]
pub(crate) struct Files(pub Option<Arc<AllowedPaths>>);

impl Files {
    /// Opens what is at a path of a statement.
    pub(crate) fn open<T>(&self, path: &str, open: impl FnOnce(&Path) -> crate::Result<T>) -> crate::Result<T> {
        let asked = Path::new(path);
        let Some(allowed) = &self.0 else { return open(asked) };
        let real = allowed.check_input(asked)?;
        open(&real).map_err(|error| error.asked_as(&real, asked))
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

    fn open(self, files: &Files, path: &str, variant: Option<&str>) -> crate::Result<Arc<dyn TableProvider>> {
        let model = files.open(path, |path| AnyModel::open_variant(path, variant))?;
        let path = Path::new(path);
        let name = default_name(path);
        match self {
            Self::Tensors => model.tensors(&name),
            Self::Weights => model.weights(&name),
            Self::Quantized => model.quantized(&name)?.ok_or_else(|| QuantError::missing(path, Missing::NotQuantized)),
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
        let texts: Option<Vec<&str>> = args.exprs().iter().map(text).collect();
        match (self.table, texts.as_deref()) {
            (_, Some([path])) => Ok(in_place(|| self.table.open(&self.files, path, None))?),
            (Table::Tensors | Table::Weights, Some([path, variant])) => {
                Ok(in_place(|| self.table.open(&self.files, path, Some(variant)))?)
            }
            (Table::Tensors | Table::Weights, _) => plan_err!(
                "{0} expects the path of a model as text, and a variant of its weights where it has several: {0}('path') or \
                 {0}('path', 'fp16')",
                self.table.name()
            ),
            (Table::Quantized, _) => {
                plan_err!("{0} expects one argument, the path of a model as text: {0}('path')", self.table.name())
            }
        }
    }
}

/// The text of an argument.
fn text(argument: &Expr) -> Option<&str> {
    match argument {
        Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => Some(text),
        _ => None,
    }
}

/// Makes `weights` tables of `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS LOCATION 'path'`.
#[derive(Debug)]
pub(crate) struct SafetensorsFactory(pub Files);

#[async_trait]
impl TableProviderFactory for SafetensorsFactory {
    async fn create(&self, _: &dyn Session, command: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        if !command.schema.fields().is_empty() {
            return plan_err!("{}: the columns of a SAFETENSORS table are known, leave them out", command.name);
        }
        let [location] = command.locations.as_slice() else {
            return plan_err!("{}: a SAFETENSORS table has one location, a file or model directory", command.name);
        };
        let (files, path, name) = (self.0.clone(), location.clone(), command.name.table().to_string());
        Ok(blocking(move || files.open(&path, AnyModel::open)?.weights(&name)).await?)
    }
}
