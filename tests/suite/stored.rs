//! The stored format, read by a session that knows nothing of ours, and as earlier versions wrote it.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow_quant_v2::{ModelReport, register_model, session};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use crate::common::{DIGITS, manifest, quantized, text};

/// The integers of the only row.
async fn counts(ctx: &SessionContext, sql: &str) -> Vec<i64> {
    let batches = ctx.sql(sql).await.unwrap().collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let [row] = batches.as_slice() else { panic!("{sql}: {} batches", batches.len()) };
    row.columns().iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect()
}

/// The paths of a struct's fields, those of structs in it included: `quantized['errors']['n']`.
fn paths(path: &str, data_type: &DataType) -> Vec<String> {
    let DataType::Struct(fields) = data_type else { return vec![path.to_string()] };
    let inner = fields.iter().flat_map(|field| paths(&format!("{path}['{}']", field.name()), field.data_type()));
    inner.chain([path.to_string()]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_session_gives_null_for_the_fields_of_null_values() {
    let directory = tempfile::tempdir().unwrap();
    let (out, _) = quantized(DIGITS, directory.path(), "out", &[]);
    let ctx = SessionContext::new();
    ctx.register_parquet("parts", text(&out.join("weights")), ParquetReadOptions::default()).await.unwrap();
    let schema = ctx.table("parts").await.unwrap().schema().clone();
    let found = counts(&ctx, "SELECT count(*), count(quantized), count(weights) FROM parts").await;
    let [rows, quantized, kept] = found[..] else { panic!("{found:?}") };
    assert!(quantized > 0 && kept > 0 && quantized + kept == rows, "{found:?}");
    for (column, present) in [("quantized", quantized), ("weights", kept)] {
        let paths = paths(column, schema.field_with_unqualified_name(column).unwrap().data_type());
        assert!(paths.len() > 3, "{paths:?}");
        for path in paths {
            // What a scheme has no use for is NULL everywhere.
            let present = if path.contains("zero_points") { 0 } else { present };
            let sql = format!(
                "SELECT count({path}), count(*) FILTER (WHERE {path} IS NULL), count({path}) FILTER (WHERE {column} IS NULL) FROM parts"
            );
            assert_eq!(counts(&ctx, &sql).await, [present, rows - present, 0], "{path}");
            let sql = format!("SELECT count(*) FROM parts WHERE {path} IS NULL");
            assert_eq!(counts(&ctx, &sql).await, [rows - present], "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_earlier_versions_are_the_same_tables() {
    let directory = tempfile::tempdir().unwrap();
    let (new, _) = quantized(DIGITS, directory.path(), "new", &[]);
    assert_eq!(manifest(&new)["format_version"], 3);
    for version in [1, 2] {
        let (old, _) = quantized(DIGITS, directory.path(), &format!("old{version}"), &[]);
        downgrade(&old, version);
        let ctx = session(2).unwrap();
        register_model(&ctx, "old", text(&old)).await.unwrap();
        register_model(&ctx, "new", text(&new)).await.unwrap();
        let types = "SELECT count(DISTINCT t) FROM (
            SELECT arrow_typeof(quantized) AS t FROM old.quantized UNION ALL SELECT arrow_typeof(quantized) FROM new.quantized)";
        assert_eq!(counts(&ctx, types).await, [1]);
        let all = counts(&ctx, "SELECT count(*), count(quantized['encoding']) FROM new.quantized").await;
        assert!(all[0] > 0 && all[0] == all[1], "{all:?}");
        let equal = "SELECT count(*), count(*) FILTER (WHERE o.quantized = n.quantized)
            FROM old.quantized o JOIN new.quantized n ON o.tensor = n.tensor AND o.chunk = n.chunk";
        assert_eq!(counts(&ctx, equal).await, all);
        let named = "SELECT count(*), count(*) FILTER (WHERE quantized['encoding'] = concat('int', quantized['bits'])) FROM old.quantized";
        assert_eq!(counts(&ctx, named).await, all);
        let weights = "SELECT count(*) FILTER (WHERE max_abs_error(o.weights, n.weights) = 0)
            FROM old.weights o JOIN new.weights n ON o.tensor = n.tensor AND o.chunk = n.chunk";
        assert_eq!(counts(&ctx, weights).await, counts(&ctx, "SELECT count(*) FROM new.weights").await);
        let [old, new] = [&old, &new].map(|path| ModelReport::open(path).unwrap().tensors);
        assert!(old.iter().all(|tensor| tensor.encoding.is_empty()));
        for tensor in new {
            let expected = tensor.bits.map_or(tensor.dtype, |bits| format!("int{bits}"));
            assert_eq!(tensor.encoding, expected, "{}", tensor.tensor);
        }
    }
}

/// Makes of a directory what versions before 3 wrote: values that do not name their encoding, with fields that are NOT NULL.
fn downgrade(directory: &Path, version: u32) {
    let mut manifest = manifest(directory);
    manifest["format_version"] = version.into();
    for tensor in manifest["tensors"].as_array_mut().unwrap() {
        assert!(tensor.as_object_mut().unwrap().remove("encoding").is_some(), "{tensor}");
    }
    for file in manifest["files"].as_array_mut().unwrap() {
        let path = directory.join(file["path"].as_str().unwrap());
        let bytes = downgraded(&path);
        file["bytes"] = bytes.len().into();
        file["sha256"] = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        fs::write(path, bytes).unwrap();
    }
    fs::write(directory.join("arrow_quant.json"), manifest.to_string()).unwrap();
}

fn downgraded(path: &Path) -> Vec<u8> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut writer: Option<ArrowWriter<Vec<u8>>> = None;
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let column: ArrayRef = match column.as_struct_opt() {
                Some(values) => Arc::new(as_before(values)),
                None => Arc::clone(column),
            };
            (Field::new(field.name(), column.data_type().clone(), field.is_nullable()), column)
        });
        let (fields, columns): (Vec<_>, Vec<_>) = columns.unzip();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let writer = writer.get_or_insert_with(|| ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap());
        writer.write(&batch).unwrap();
    }
    writer.unwrap().into_inner().unwrap()
}

fn as_before(values: &StructArray) -> StructArray {
    let fields = values.fields().iter().zip(values.columns()).filter(|(field, _)| field.name() != "encoding");
    let (fields, columns): (Vec<_>, Vec<_>) = fields
        .map(|(field, column)| {
            let column: ArrayRef = match column.as_struct_opt() {
                Some(inner) => Arc::new(as_before(inner)),
                None => Arc::clone(column),
            };
            let is_nullable = ["minima", "zero_points"].contains(&field.name().as_str());
            (Field::new(field.name(), column.data_type().clone(), is_nullable), column)
        })
        .unzip();
    StructArray::new(fields.into(), columns, values.nulls().cloned())
}
