//! What queries over weights cost and give: one evaluation a row, parallel scans, mixed precision, round trips.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{DIGITS, Tensor, text, write_model};
use arrow::array::{Array, ArrowPrimitiveType, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_quant_v2::{register_model, session};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::physical_plan::{collect_partitioned, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionContext};

async fn digits(threads: usize) -> SessionContext {
    let ctx = session(threads).unwrap();
    register_model(&ctx, "digits", DIGITS).await.unwrap();
    ctx
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

async fn collect(ctx: &SessionContext, sql: &str) -> Vec<RecordBatch> {
    ctx.sql(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}")).collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// The only value of a query.
async fn value<T: ArrowPrimitiveType>(ctx: &SessionContext, sql: &str) -> T::Native {
    let batches = collect(ctx, sql).await;
    assert_eq!(rows(&batches), 1, "{sql}");
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).unwrap();
    let column = batch.column(0).as_primitive::<T>();
    assert!(column.is_valid(0), "{sql}");
    column.value(0)
}

/// `quantize`, counting the rows it is evaluated for.
#[derive(Debug)]
struct Counting {
    quantize: Arc<ScalarUDF>,
    rows: Arc<AtomicUsize>,
}

impl PartialEq for Counting {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rows, &other.rows)
    }
}

impl Eq for Counting {}

impl Hash for Counting {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.rows).hash(state);
    }
}

impl ScalarUDFImpl for Counting {
    fn name(&self) -> &str {
        self.quantize.name()
    }

    fn signature(&self) -> &Signature {
        self.quantize.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.quantize.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.quantize.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.quantize.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.rows.fetch_add(args.number_rows, Ordering::Relaxed);
        self.quantize.invoke_with_args(args)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quantize_is_evaluated_once_a_row_however_many_fields_are_read() {
    let ctx = digits(2).await;
    let rows = Arc::new(AtomicUsize::new(0));
    let quantize = arrow_quant_udfs::scalar_functions().into_iter().find(|f| f.name() == "quantize").unwrap();
    ctx.register_udf(ScalarUDF::new_from_impl(Counting { quantize, rows: Arc::clone(&rows) }));
    let source = "FROM digits.weights WHERE tensor LIKE 'blocks.%.fc1.weight'";
    let chunks = value::<Int64Type>(&ctx, &format!("SELECT count(*) {source}")).await as usize;
    assert!(chunks > 1);
    let quantized = format!("(SELECT tensor, weights, quantize(weights, 4, 64) AS q {source})");
    let queries = [
        format!("SELECT q FROM {quantized}"),
        format!(
            "SELECT q['codes'], q['scales'], q['minima'], q['errors']['sum_ee'], q['errors']['n'] FROM {quantized}"
        ),
        // The same call written out for each field.
        format!("SELECT quantize(weights, 4, 64)['codes'], quantize(weights, 4, 64)['scales'] {source}"),
        format!("SELECT q['bits'], sqnr(q), cosine_similarity(weights, dequantize(q)) FROM {quantized}"),
        format!("SELECT q['codes'] FROM {quantized} ORDER BY q['errors']['sum_ee'] DESC"),
        format!(
            "SELECT tensor, sqnr_agg(q), sum(q['errors']['n']), cosine_similarity_agg(weights, dequantize(q)) \
             FROM {quantized} GROUP BY tensor"
        ),
        format!(
            "SELECT q['codes'], q['scales'], q['bits'] FROM \
             (SELECT quantize(w.weights, p.bits, 64) AS q FROM (SELECT * {source}) w \
              JOIN (VALUES ('blocks.0.fc1.weight', 2), ('blocks.1.fc1.weight', 8), ('blocks.2.fc1.weight', 4), \
                           ('blocks.3.fc1.weight', 4)) AS p(tensor, bits) ON w.tensor = p.tensor)"
        ),
    ];
    for query in queries {
        rows.store(0, Ordering::Relaxed);
        collect(&ctx, &query).await;
        assert_eq!(rows.load(Ordering::Relaxed), chunks, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_precision_is_a_join_with_a_plan() {
    let ctx = digits(2).await;
    let query = "
        SELECT w.tensor, q['bits'] AS bits, q['group_size'] AS group_size, sqnr(q) AS db
        FROM (SELECT w.tensor, quantize(w.weights, p.bits, p.group_size) AS q
              FROM digits.weights w
              JOIN (VALUES ('pos_embed', 8, 32), ('proj_out.weight', 4, 128), ('label_embed.weight', 2, 64))
                   AS p(tensor, bits, group_size) ON w.tensor = p.tensor) w";
    let mut found = BTreeMap::new();
    for batch in collect(&ctx, query).await {
        let (bits, sizes) = (batch.column(1).as_primitive::<Int32Type>(), batch.column(2).as_primitive::<Int32Type>());
        let (names, db) = (batch.column(0).as_string::<i32>(), batch.column(3).as_primitive::<Float64Type>());
        for row in 0..batch.num_rows() {
            found.insert(names.value(row).to_string(), (bits.value(row), sizes.value(row), db.value(row)));
        }
    }
    assert_eq!(found.len(), 3);
    let settings = |name: &str| (found[name].0, found[name].1);
    assert_eq!(settings("pos_embed"), (8, 32));
    assert_eq!(settings("proj_out.weight"), (4, 128));
    assert_eq!(settings("label_embed.weight"), (2, 64));
    // About 6 dB a bit.
    assert!(found["pos_embed"].2 > found["proj_out.weight"].2 + 12.0, "{found:?}");
    assert!(found["proj_out.weight"].2 > found["label_embed.weight"].2 + 6.0, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_giant_tensor_is_scanned_by_all_partitions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("giant.safetensors");
    write_model(&path, &[Tensor::counting("w", "F32", &[1024, 1024])]);
    let ctx = session(4).unwrap();
    register_model(&ctx, "m", text(&path)).await.unwrap();
    let frame = ctx.sql("SELECT start, weights FROM m.weights").await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let partitions = collect_partitioned(Arc::clone(&plan), ctx.task_ctx()).await.unwrap();
    let shown = displayable(plan.as_ref()).indent(true).to_string();
    assert_eq!(partitions.len(), 4, "{shown}");
    // 16 chunks, four each.
    assert!(partitions.iter().all(|batches| rows(batches) == 4), "{shown}");
    let mut starts: Vec<i64> = partitions
        .iter()
        .flatten()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..16).map(|chunk| chunk << 16).collect::<Vec<_>>());
    // Every element once: Σi for i below 2²⁰, exact in f64.
    let sum = "SELECT sum(s['mean'] * s['n']) FROM (SELECT tensor_stats(weights) AS s FROM m.weights)";
    assert_eq!(value::<Float64Type>(&ctx, sum).await, ((1u64 << 20) * ((1 << 20) - 1) / 2) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_tensor_of_many_gigabytes_is_its_end() {
    use std::io::{Seek, SeekFrom, Write};

    // Sparse: 9.2 GB that take no room, all zero but for the last element.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("huge.safetensors");
    let (rows, columns) = (70_000u64, 32_768u64);
    let bytes = rows * columns * 4;
    let header = format!(r#"{{"w":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    file.seek(SeekFrom::End(-4)).unwrap();
    file.write_all(&7.0f32.to_le_bytes()).unwrap();
    let ctx = session(1).unwrap();
    register_model(&ctx, "m", text(&path)).await.unwrap();
    let last = "SELECT tensor_stats(weights)['max'] FROM m.weights WHERE start = 70000 * 32768 - 65536";
    assert_eq!(value::<Float64Type>(&ctx, last).await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_and_quantized_values_survive_parquet() {
    let directory = tempfile::tempdir().unwrap();
    // A file that tells Arrow's types is read back as BinaryView, one that does not as Binary.
    for skip_metadata in [false, true] {
        let ctx = digits(2).await;
        collect(&ctx, &format!("SET datafusion.execution.parquet.skip_arrow_metadata = {skip_metadata}")).await;
        let path = directory.path().join(format!("{skip_metadata}.parquet"));
        let copied = "SELECT tensor, chunk, weights, quantize(weights, 4, 64) AS quantized FROM digits.weights";
        collect(&ctx, &format!("COPY ({copied}) TO '{}' STORED AS PARQUET", path.display())).await;
        ctx.register_parquet("copy", text(&path), ParquetReadOptions::default()).await.unwrap();
        let joined = "FROM digits.weights o JOIN copy c ON o.tensor = c.tensor AND o.chunk = c.chunk";
        assert_eq!(value::<Int64Type>(&ctx, &format!("SELECT count(*) {joined}")).await, 56);
        for (expression, expected) in [
            ("min(cosine_similarity(o.weights, c.weights))", 1.0),
            ("max(max_abs_error(o.weights, c.weights))", 0.0),
            ("max(max_abs_error(dequantize(c.quantized), dequantize(quantize(o.weights, 4, 64))))", 0.0),
            ("max(abs(cosine_similarity(c.quantized) - cosine_similarity(o.weights, dequantize(c.quantized))))", 0.0),
        ] {
            let found = value::<Float64Type>(&ctx, &format!("SELECT {expression} {joined}")).await;
            assert!((found - expected).abs() < 1e-6, "{expression} is {found}, skip_arrow_metadata {skip_metadata}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_functions_load_into_any_session() {
    let mut ctx = SessionContext::new();
    arrow_quant_udfs::register_all(&mut ctx).unwrap();
    let query =
        "SELECT min(cosine_similarity(w, dequantize(quantize(w, 8, 32)))) FROM (VALUES ([0.5, -1.0, 0.25])) AS t(w)";
    assert!(value::<Float64Type>(&ctx, query).await > 0.9999);
    let aggregate = "SELECT sqnr_agg(quantize(w, 8, 32)) FROM (VALUES ([0.5, -1.0, 0.25]), ([0.1, 0.2, 0.4])) AS t(w)";
    assert!(value::<Float64Type>(&ctx, aggregate).await > 40.0);
}

/// Against plain loops over the elements.
#[tokio::test(flavor = "multi_thread")]
async fn the_cosine_similarity_of_a_tensor_is_that_of_all_its_elements() {
    let ctx = digits(2).await;
    let name = "blocks.0.modulation.weight";
    let quantized = format!(
        "(SELECT chunk, weights, dequantize(quantize(weights, 2, 64)) AS restored FROM digits.weights WHERE tensor = '{name}')"
    );
    let found =
        value::<Float64Type>(&ctx, &format!("SELECT cosine_similarity_agg(weights, restored) FROM {quantized}")).await;
    let (mut aa, mut bb, mut ab, mut elements) = (0.0, 0.0, 0.0, 0);
    for batch in collect(&ctx, &format!("SELECT to_floats(weights), to_floats(restored) FROM {quantized}")).await {
        let floats =
            |column: usize| batch.column(column).as_list::<i32>().values().as_primitive::<Float32Type>().clone();
        for (a, b) in floats(0).values().iter().zip(floats(1).values().iter()) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            (aa, bb, ab, elements) = (aa + a * a, bb + b * b, ab + a * b, elements + 1);
        }
    }
    assert_eq!(elements, 768 * 128);
    assert!((found - ab / (aa * bb).sqrt()).abs() < 1e-9, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused() {
    let ctx = digits(1).await;
    let error = register_model(&ctx, "digits", DIGITS).await.unwrap_err().to_string();
    assert_eq!(error, "the name 'digits' is taken, name the model otherwise");
    assert!(register_model(&ctx, "other", DIGITS).await.is_ok());
}
