//! Blocks of ggml's types in a session of any DataFusion: whatever their bytes, functions give weights or an error.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Float64Type, Int64Type, UInt64Type};
use arrow_quant_kernels::{BlockType, Fill};
use arrow_quant_udfs::register_all;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};

/// Stored blocks, and how long the value says that their rows are.
struct Stored {
    block_type: BlockType,
    row_length: usize,
    bytes: Vec<u8>,
}

/// A session with the table `blocks`: `q`, quantized values, and `t`, tensor values of the same bytes.
fn session(values: &[Stored]) -> SessionContext {
    let count = |f: fn(&Stored) -> usize| {
        Arc::new(Int64Array::from_iter_values(values.iter().map(|value| f(value) as i64))) as ArrayRef
    };
    let names = Arc::new(StringArray::from_iter_values(values.iter().map(|value| value.block_type.name()))) as ArrayRef;
    let bytes = Arc::new(BinaryArray::from_iter_values(values.iter().map(|value| &value.bytes))) as ArrayRef;
    let of = |columns: Vec<(&str, &ArrayRef)>| -> ArrayRef {
        let fields: Fields = columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
        Arc::new(StructArray::new(fields, columns.into_iter().map(|(_, column)| Arc::clone(column)).collect(), None))
    };
    let length = count(|value| value.bytes.len() / value.block_type.size() * value.block_type.length());
    let rows = count(|value| value.row_length);
    let q = of(vec![("encoding", &names), ("length", &length), ("row_length", &rows), ("codes", &bytes)]);
    let t = of(vec![("dtype", &names), ("row_length", &rows), ("data", &bytes)]);
    // As the crate's documentation says: pushed down, the name `q` means what another function gave.
    let mut config = SessionConfig::new();
    config.options_mut().optimizer.enable_leaf_expression_pushdown = false;
    let mut ctx = SessionContext::new_with_config(config);
    register_all(&mut ctx).unwrap();
    ctx.register_batch("blocks", RecordBatch::try_from_iter([("type", names), ("q", q), ("t", t)]).unwrap()).unwrap();
    ctx
}

async fn query(ctx: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
    ctx.sql(sql).await?.collect().await
}

/// Two blocks of every type: of each byte alone, and of bytes at random.
fn every_pattern() -> Vec<Stored> {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut values = Vec::new();
    for &block_type in BlockType::ALL {
        let size = 2 * block_type.size();
        let value = |bytes| Stored { block_type, row_length: 2 * block_type.length(), bytes };
        values.extend((0..=u8::MAX).map(|byte| value(vec![byte; size])));
        values.extend((0..64).map(|_| value((0..size).map(|_| random()).collect())));
    }
    values
}

#[tokio::test]
async fn every_byte_pattern_is_weights() {
    let values = every_pattern();
    let ctx = session(&values);
    let sql = "SELECT d['row_length'], tensor_stats(d)['n'], tensor_stats(t)['n'], array_length(to_floats(t)), array_length(to_floats(d)),
        tensor_stats(t)['nans'] = tensor_stats(d)['nans'], cosine_similarity(t, d), sqnr(d, t), max_abs_error(t, t),
        scale_channels(t, array_repeat(2.0, d['row_length'])), weighted_sum(1, t, 1, d)
        FROM (SELECT t, dequantize(q) AS d FROM blocks)";
    let mut row = 0;
    for batch in query(&ctx, sql).await.unwrap() {
        let count = |column: usize, row| batch.column(column).as_primitive::<Int64Type>().value(row) as usize;
        let long = |column: usize, row| batch.column(column).as_primitive::<UInt64Type>().value(row) as usize;
        for at in 0..batch.num_rows() {
            let value = &values[row];
            let counts = [count(0, at), count(1, at), count(2, at), long(3, at), long(4, at)];
            assert_eq!(counts, [value.row_length; 5], "{}", value.block_type);
            assert!(batch.column(5).as_boolean().value(at), "{}", value.block_type);
            row += 1;
        }
    }
    assert_eq!(row, values.len());
    let sql = "SELECT type, sqnr_agg(t, d), cosine_similarity_agg(d, t), max_abs_error_agg(t, d), tensor_stats_agg(t)
        FROM (SELECT type, t, dequantize(q) AS d FROM blocks) GROUP BY type";
    let groups = query(&ctx, sql).await.unwrap();
    assert_eq!(groups.iter().map(RecordBatch::num_rows).sum::<usize>(), BlockType::ALL.len());
}

#[tokio::test]
async fn blocks_of_any_length_are_whole_blocks_or_an_error() {
    for &block_type in BlockType::ALL {
        let (size, length) = (block_type.size(), block_type.length());
        for bytes in [0, size - 1, size, size + 1, 2 * size] {
            for row_length in [0, length - 1, length, 2 * length, usize::MAX >> 1] {
                let ctx = session(&[Stored { block_type, row_length, bytes: vec![0x5a; bytes] }]);
                let weights = bytes / size * length;
                let is_whole = bytes == 0
                    || bytes.is_multiple_of(size)
                        && row_length > 0
                        && weights.is_multiple_of(row_length)
                        && row_length.is_multiple_of(length);
                for sql in ["SELECT dequantize(q) FROM blocks", "SELECT tensor_stats(t) FROM blocks"] {
                    let found = query(&ctx, sql).await;
                    assert_eq!(found.is_ok(), is_whole, "{block_type} {bytes} {row_length}: {found:?}");
                    if let Err(error) = found {
                        let message = error.to_string();
                        assert!(message.contains(", row 0: ") && message.contains("do not divide into"), "{message}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn blocks_are_quantized_again_as_any_weights_are() {
    let ctx = session(&every_pattern());
    // Weights that are not finite are refused, and so are those whose scale f16 does not hold.
    let sql = "SELECT sqnr(q), q['errors']['n'] FROM (
            SELECT quantize(t, 'q8_0', method) AS q FROM blocks CROSS JOIN (VALUES ('mse'), ('reference')) AS m(method)
            WHERE tensor_stats(t)['nans'] + tensor_stats(t)['infinities'] = 0
              AND tensor_stats(t)['max'] < 1e6 AND tensor_stats(t)['min'] > -1e6)";
    let rows: usize = query(&ctx, sql).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert!(rows > 2 * 2000, "{rows}");
}

#[tokio::test]
async fn one_call_makes_rows_of_both_kinds() {
    let mut ctx = SessionContext::new();
    register_all(&mut ctx).unwrap();
    let blocks = BlockType::ALL.iter().map(|t| format!("('{t}', NULL, NULL, '{}')", Fill::Reference));
    let others = ["('int5', 16, 'symmetric', 'minmax')", "(NULL, NULL, NULL, NULL)"].map(str::to_string);
    let plan: Vec<String> = blocks.chain(others).collect();
    let sql = format!(
        "SELECT type, sqnr(q), q['encoding'] = type, q['bits'] IS NULL FROM (
            SELECT type, quantize(w, type, group_size, scheme, method) AS q FROM
                (SELECT array_agg(sin(i * 0.37) ORDER BY i) AS w FROM generate_series(1, 512) AS t(i)),
                (VALUES {}) AS plan(type, group_size, scheme, method))",
        plan.join(", ")
    );
    let mut seen = 0;
    for batch in query(&ctx, &sql).await.unwrap() {
        let names = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
        let (names, db) = (names.as_string::<i32>(), batch.column(1).as_primitive::<Float64Type>());
        for row in 0..batch.num_rows() {
            seen += 1;
            if names.is_null(row) {
                assert!(db.is_null(row));
                continue;
            }
            assert!(db.value(row) > 3.0, "{}: {}", names.value(row), db.value(row));
            assert!(batch.column(2).as_boolean().value(row), "{}", names.value(row));
            assert_eq!(batch.column(3).as_boolean().value(row), names.value(row) != "int5");
        }
    }
    assert_eq!(seen, plan.len());
}
