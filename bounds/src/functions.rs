//! Functions whose results can be far larger than their arguments. Here they take memory from the pool before they run, so that
//! `SELECT lpad('a', 2000000000)` is refused like a sort that is too large. While a statement is planned, what would be large is left
//! to the query: planning has no memory of its own, and its rules compare and copy constants again and again.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{
    DataType, FieldRef, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::{Result, exec_err, resources_err};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

use crate::sizes::value_bytes;

/// The bytes that a result has at most, roughly.
type Estimate = fn(&Arguments) -> Result<u64>;

/// The functions, by their first names.
const FUNCTIONS: [(&str, Estimate); 23] = [
    ("array_concat", sum),
    ("array_distinct", set),
    ("array_except", set),
    ("array_intersect", set),
    ("array_repeat", repeated_elements),
    ("array_replace", replaced_elements),
    ("array_replace_all", replaced_elements),
    ("array_replace_n", replaced_elements),
    ("array_resize", resized),
    ("array_to_string", joined_elements),
    ("array_union", set),
    ("concat", sum),
    ("concat_ws", joined),
    ("generate_series", series),
    ("levenshtein", compared),
    ("lpad", padded),
    ("make_array", sum),
    ("named_struct", sum),
    ("range", series),
    ("regexp_replace", replaced_matches),
    ("repeat", repeated),
    ("replace", replaced),
    ("rpad", padded),
];

/// Results that are not counted, and that are computed while a statement is planned: asking the pool would take longer.
const UNCOUNTED: u64 = 1 << 20;

/// No result is larger, however much memory there is: the allocator would end the process.
const LARGEST: u64 = 16 << 30;

thread_local! {
    static PLANNING: Cell<bool> = const { Cell::new(false) };
}

/// Does work on this thread during which no large constants are computed.
pub fn while_planning<T>(work: impl FnOnce() -> T) -> T {
    struct Planning;
    impl Drop for Planning {
        fn drop(&mut self) {
            PLANNING.set(false);
        }
    }
    PLANNING.set(true);
    let _planning = Planning;
    work()
}

/// The same session, in which these functions are bounded by its memory.
pub fn bounded(ctx: &SessionContext) -> SessionContext {
    let bounded = SessionContext::new_with_state(ctx.state());
    let pool = &ctx.runtime_env().memory_pool;
    for (name, estimate) in FUNCTIONS {
        // A session may have been given fewer functions.
        if let Ok(function) = ctx.udf(name) {
            bounded.register_udf(ScalarUDF::new_from_impl(Bounded {
                inner: function,
                estimate,
                pool: Arc::clone(pool),
            }));
        }
    }
    bounded
}

/// A function that takes its result's memory from a pool while it computes it.
struct Bounded {
    inner: Arc<ScalarUDF>,
    estimate: Estimate,
    pool: Arc<dyn MemoryPool>,
}

/// Errors show expressions, of which clients see the name.
impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.inner.name())
    }
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

/// `simplify` is not among these: it would put the function that is wrapped in the place of this one.
impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = (self.estimate)(&Arguments::of(&args))?;
        if bytes <= UNCOUNTED {
            return self.inner.invoke_with_args(args);
        }
        if bytes > LARGEST {
            return resources_err!("'{}' would give {bytes} bytes, {LARGEST} are allowed", self.name());
        }
        if PLANNING.get() {
            // The optimizer leaves alone what fails.
            return exec_err!("'{}' is computed with the query", self.name());
        }
        let reservation = MemoryConsumer::new(self.name()).register(&self.pool);
        reservation.try_grow(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        self.inner.invoke_with_args(args)
    }
}

/// What a function is called with. Constants are one row if there is nothing else.
struct Arguments<'a> {
    values: &'a [ColumnarValue],
    rows: usize,
}

impl<'a> Arguments<'a> {
    fn of(args: &'a ScalarFunctionArgs) -> Self {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        Self { values: &args.args, rows: if constant { 1 } else { args.number_rows } }
    }

    /// A number for each row, of an argument that may not be there.
    fn each(&self, argument: usize, number: impl Fn(&ArrayRef) -> Result<Vec<u64>>) -> Result<Vec<u64>> {
        Ok(match self.values.get(argument) {
            None => vec![0; self.rows],
            Some(ColumnarValue::Array(array)) => number(array)?,
            Some(ColumnarValue::Scalar(value)) => {
                let one = number(&value.to_array()?)?.first().copied().unwrap_or(0);
                vec![one; self.rows]
            }
        })
    }

    /// The bytes of each value.
    fn bytes(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| Ok(value_bytes(array).into_iter().map(|bytes| bytes as u64).collect()))
    }

    /// The bytes of each text, or the elements of each list.
    fn lengths(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| match array.data_type() {
            DataType::Null => Ok(vec![0; array.len()]),
            _ => counts(&length(array)?),
        })
    }

    /// How often; less than zero is none.
    fn counts(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| counts(array))
    }

    /// The whole numbers of an argument, NULL among them; `otherwise` if there is no such argument.
    fn numbers(&self, argument: Option<usize>, to: &DataType, otherwise: i64) -> Result<Vec<Option<i64>>> {
        let value = argument.and_then(|argument| self.values.get(argument));
        let Some(value) = value else { return Ok(vec![Some(otherwise); self.rows]) };
        let array = cast(&cast(&value.to_array(self.rows)?, to)?, &DataType::Int64)?;
        Ok(array.as_primitive::<Int64Type>().iter().collect())
    }
}

fn counts(array: &dyn Array) -> Result<Vec<u64>> {
    let array = cast(array, &DataType::Int64)?;
    let array: &Int64Array = array.as_primitive();
    Ok(array.iter().map(|count| u64::try_from(count.unwrap_or(0)).unwrap_or(0)).collect())
}

/// The sum over all rows of what two numbers give.
fn over(a: &[u64], b: &[u64], bytes: impl Fn(u64, u64) -> u64) -> u64 {
    a.iter().zip(b).fold(0, |sum, (&a, &b)| sum.saturating_add(bytes(a, b)))
}

fn sum(args: &Arguments) -> Result<u64> {
    (0..args.values.len())
        .try_fold(0_u64, |sum, argument| Ok(args.bytes(argument)?.into_iter().fold(sum, u64::saturating_add)))
}

fn joined(args: &Arguments) -> Result<u64> {
    let separators = args.lengths(0)?.into_iter().fold(0, u64::saturating_add);
    Ok(sum(args)?.saturating_add(separators.saturating_mul(args.values.len() as u64)))
}

fn repeated(args: &Arguments) -> Result<u64> {
    Ok(over(&args.lengths(0)?, &args.counts(1)?, u64::saturating_mul))
}

/// A character has up to four bytes.
fn padded(args: &Arguments) -> Result<u64> {
    Ok(over(&args.lengths(0)?, &args.counts(1)?, |text, count| text.max(count.saturating_mul(4))))
}

fn replaced(args: &Arguments) -> Result<u64> {
    let (text, from, to) = (args.lengths(0)?, args.lengths(1)?, args.lengths(2)?);
    // Nothing is found nowhere.
    let found: Vec<_> = text.iter().zip(&from).map(|(text, from)| text.checked_div(*from).unwrap_or(0)).collect();
    Ok(over(&found, &to, u64::saturating_mul).saturating_add(text.into_iter().fold(0, u64::saturating_add)))
}

/// Each match gives the replacement, in which what was captured may stand as often as its number has room.
fn replaced_matches(args: &Arguments) -> Result<u64> {
    let bytes = |text: u64, to: u64| (text + 1).saturating_mul(to + 1).saturating_add(text);
    Ok(over(&args.lengths(0)?, &args.lengths(2)?, bytes))
}

fn repeated_elements(args: &Arguments) -> Result<u64> {
    Ok(over(&args.bytes(0)?, &args.counts(1)?, u64::saturating_mul))
}

/// The sets that elements are put into take much more than they do.
fn set(args: &Arguments) -> Result<u64> {
    Ok(sum(args)?.saturating_mul(12))
}

/// Every element may be one that is replaced.
fn replaced_elements(args: &Arguments) -> Result<u64> {
    let new = over(&args.lengths(0)?, &args.bytes(2)?, u64::saturating_mul);
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

fn resized(args: &Arguments) -> Result<u64> {
    const EMPTY: u64 = 16;
    let sizes = args.numbers(Some(1), &DataType::Int64, 0)?;
    if let Some(size) = sizes.iter().flatten().find(|size| **size < 0) {
        return exec_err!("array_resize: the size is {size}, allowed: 0 and more");
    }
    let new = over(&args.counts(1)?, &args.bytes(2)?, |count, fill| count.saturating_mul(EMPTY + fill));
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

fn joined_elements(args: &Arguments) -> Result<u64> {
    let width = args.values.first().map_or(0, |lists| width(&lists.data_type()));
    let each: Vec<_> = args.lengths(1)?.iter().zip(args.lengths(2)?).map(|(by, null)| by + null + width).collect();
    let count = args.each(0, |lists| Ok(each_list(lists, elements)))?;
    let new = over(&count, &each, u64::saturating_mul);
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

/// A number for each list of an array.
fn each_list(lists: &ArrayRef, number: impl Fn(&ArrayRef) -> u64) -> Vec<u64> {
    match lists.data_type() {
        DataType::List(_) => lists.as_list::<i32>().iter().map(|list| list.as_ref().map_or(0, &number)).collect(),
        DataType::LargeList(_) => lists.as_list::<i64>().iter().map(|list| list.as_ref().map_or(0, &number)).collect(),
        DataType::FixedSizeList(..) => {
            lists.as_fixed_size_list().iter().map(|list| list.as_ref().map_or(0, &number)).collect()
        }
        _ => vec![0; lists.len()],
    }
}

/// The elements of a list, those of lists within it one by one.
fn elements(list: &ArrayRef) -> u64 {
    if list.data_type().is_nested() { each_list(list, elements).into_iter().sum() } else { list.len() as u64 }
}

/// The characters of an element that is no text: floats are written with all their digits.
fn width(data_type: &DataType) -> u64 {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            width(field.data_type())
        }
        DataType::Float64 => 330,
        DataType::Decimal256(..) => 80,
        DataType::Float16 | DataType::Float32 | DataType::Decimal128(..) => 50,
        _ => 32,
    }
}

/// Nothing large, but each character of one text is compared with each of the other.
fn compared(args: &Arguments) -> Result<u64> {
    const MOST: u64 = 4_000_000_000;
    let steps = over(&args.lengths(0)?, &args.lengths(1)?, u64::saturating_mul);
    if steps > MOST {
        return exec_err!("levenshtein: of these texts it would take {steps} steps, {MOST} are allowed");
    }
    Ok(steps / 100)
}

/// Of whole numbers, days or nanoseconds, eight bytes each.
fn series(args: &Arguments) -> Result<u64> {
    let Some(first) = args.values.first() else { return Ok(0) };
    let day: i64 = 86_400_000_000_000;
    let (unit, to) = match first.data_type() {
        DataType::Date32 | DataType::Date64 => (day, DataType::Date32),
        DataType::Timestamp(_, zone) => (1, DataType::Timestamp(TimeUnit::Nanosecond, zone)),
        DataType::Null => return Ok(0),
        _ => (1, DataType::Int64),
    };
    // One argument is the end.
    let (start, stop) = if args.values.len() == 1 { (None, Some(0)) } else { (Some(0), Some(1)) };
    let (start, stop) = (args.numbers(start, &to, 0)?, args.numbers(stop, &to, 0)?);
    let rows = start.iter().zip(&stop).zip(steps(args, day)?).map(|((&start, &stop), step)| {
        // A series of which something is not known is none, and the function says what is wrong with a step of nothing.
        let (Some(start), Some(stop), Some(step)) = (start, stop, step) else { return 1 };
        let way = (i128::from(stop) - i128::from(start)) * i128::from(unit);
        if step == 0 || (way < 0) != (step < 0) { 1 } else { way / step + 1 }
    });
    let elements = rows.fold(0_u64, |sum, rows| sum.saturating_add(u64::try_from(rows).unwrap_or(u64::MAX)));
    Ok(elements.saturating_mul(8))
}

/// The steps of series; of intervals, in nanoseconds.
fn steps(args: &Arguments, day: i64) -> Result<Vec<Option<i128>>> {
    let Some(step) = args.values.get(2).filter(|step| matches!(step.data_type(), DataType::Interval(_))) else {
        let steps = args.numbers(Some(2), &DataType::Int64, 1)?;
        return Ok(steps.into_iter().map(|step| step.map(i128::from)).collect());
    };
    let steps = cast(&step.to_array(args.rows)?, &DataType::Interval(IntervalUnit::MonthDayNano))?;
    let steps = steps.as_primitive::<IntervalMonthDayNanoType>();
    // A month more and some days less may be no step at all, and the series would never end.
    if let Some(step) = steps.iter().flatten().find(goes_both_ways) {
        let IntervalMonthDayNano { months, days, nanoseconds } = step;
        return exec_err!(
            "the step of a series goes both ways: {months} months, {days} days and {nanoseconds} nanoseconds; give them one sign"
        );
    }
    // The shortest month, and the shortest day where clocks change.
    let nanoseconds = |IntervalMonthDayNano { months, days, nanoseconds }| {
        let days = i128::from(months) * 28 + i128::from(days);
        days * i128::from(day) * 23 / 24 + i128::from(nanoseconds)
    };
    Ok(steps.iter().map(|step| step.map(nanoseconds)).collect())
}

fn goes_both_ways(step: &IntervalMonthDayNano) -> bool {
    let signs = [i64::from(step.months), i64::from(step.days), step.nanoseconds].map(i64::signum);
    signs.contains(&1) && signs.contains(&-1)
}

#[cfg(test)]
mod tests {
    use datafusion::error::DataFusionError;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::SessionConfig;

    use super::*;

    /// A session with this much memory.
    fn session(bytes: usize) -> SessionContext {
        let environment = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes)));
        let environment = environment.build_arc().expect("an environment");
        bounded(&SessionContext::new_with_config_rt(SessionConfig::new().with_target_partitions(1), environment))
    }

    async fn size(ctx: &SessionContext, sql: &str) -> Result<usize> {
        let batches = ctx.sql(sql).await?.collect().await?;
        Ok(batches.iter().flat_map(|batch| batch.columns()).flat_map(value_bytes).sum())
    }

    /// Expressions whose results have between 2 and 8 MB.
    const LARGE: [&str; 22] = [
        "array_concat(range(0, 200000), range(0, 200000))",
        "array_repeat('abcd', 500000)",
        "list_repeat(range(0, 1000), 500)",
        "array_replace_all(array_repeat('a', 2000), 'a', repeat('b', 2000))",
        "array_resize([1], 500000, 2)",
        "array_to_string(range(0, 100000), 'a separator of some length')",
        "array_to_string([array_repeat('', 100000), array_repeat('', 100000)], 'a separator of some')",
        "array_to_string(array_repeat(1e308, 10000), '')",
        "array_union(range(0, 200000), range(200000, 400000))",
        "concat(repeat('a', 1500000), repeat('b', 1500000))",
        "concat_ws(repeat('-', 500000), 'a', 'b', 'c', 'd', 'e', 'f')",
        "range(500000)",
        "range(500000, 0, -1)",
        "generate_series(0, 2000000, 4)",
        "generate_series(TIMESTAMP '2020-01-01', TIMESTAMP '2020-01-06', INTERVAL '1 second')",
        "lpad('a', 3000000)",
        "rpad('a', 3000000, 'xy')",
        "lpad('ä', 1500000, 'ö')",
        "regexp_replace(repeat('ab', 1000), 'a', repeat('c', 3000), 'g')",
        "regexp_replace(repeat('a', 50000), '(.*)', repeat('\\1', 50))",
        "repeat('abc', 1000000)",
        "replace(repeat('ab', 1000), 'a', repeat('c', 3000))",
    ];

    #[tokio::test]
    async fn what_becomes_large_is_taken_from_the_pool() {
        let (roomy, narrow) = (session(256 << 20), session(2 << 20));
        for expression in LARGE {
            let sql = format!("SELECT {expression} AS x");
            let bytes = size(&roomy, &sql).await.expect(expression);
            assert!((2_000_000..9_000_000).contains(&bytes), "{expression}: {bytes}");
            let refused = size(&narrow, &sql).await.expect_err(expression).strip_backtrace();
            assert!(refused.contains("Resources exhausted") || refused.contains("Failed to allocate"), "{refused}");
        }
        assert_eq!(roomy.runtime_env().memory_pool.reserved(), 0);
        assert_eq!(narrow.runtime_env().memory_pool.reserved(), 0);
    }

    #[tokio::test]
    async fn of_several_rows_each_counts() {
        let sql = |rows: usize| format!("SELECT repeat('x', v * 1000) AS x FROM generate_series(1, {rows}) AS t(v)");
        let ctx = session(8 << 20);
        assert!(size(&ctx, &sql(100)).await.expect("5 MB") > 5_000_000);
        assert!(size(&ctx, &sql(200)).await.is_err());
    }

    #[test]
    fn nothing_large_is_computed_while_it_is_planned() {
        let ctx = session(1 << 20);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let planned = |sql: &str| {
            let plan = async || Ok::<_, DataFusionError>(ctx.sql(sql).await?.into_optimized_plan()?.to_string());
            while_planning(|| runtime.block_on(plan())).expect(sql)
        };
        for expression in LARGE.iter().chain(&["range(0, 9000000000000)", "lpad('a', 2147483647)"]) {
            planned(&format!("SELECT {expression} AS x"));
        }
        assert!(planned("SELECT lpad('a', 100000000) AS x").contains("lpad("));
        assert!(planned("SELECT concat('a', 'b') AS x").contains("Utf8(\"ab\")"), "what is small is a constant");
    }

    #[tokio::test]
    async fn what_would_never_end_is_refused() {
        let ctx = session(1 << 20);
        for sql in [
            "SELECT generate_series(DATE '2020-02-01', DATE '2020-01-15', INTERVAL '1 month -31 day')",
            "SELECT range(TIMESTAMP '2021-02-01', TIMESTAMP '2021-03-01', INTERVAL '1 month -28 day')",
            "SELECT levenshtein(lpad('a', 100000), lpad('b', 100000))",
            "SELECT array_resize([1, 2], -1)",
        ] {
            let refused = size(&ctx, sql).await.expect_err(sql);
            assert!(matches!(refused.find_root(), DataFusionError::Execution(_)), "{refused}");
        }
        let nothing =
            "SELECT range(NULL, 9000000000), range(v, 9000000000) FROM (VALUES (CAST(NULL AS BIGINT))) AS t(v)";
        assert!(size(&ctx, nothing).await.is_ok());
    }

    #[tokio::test]
    async fn results_and_names_are_the_same() {
        let (ctx, plain) = (session(64 << 20), SessionContext::new());
        for sql in [
            "SELECT concat('a', 1, NULL), concat_ws(',', 'a', NULL, 'b'), lpad('a', 3), rpad(NULL, 3), repeat('ab', 2)",
            "SELECT range(3), range(1, 3), generate_series(3, 1, -1), range(NULL), range(1, 1)",
            "SELECT range(DATE '2020-01-01', DATE '2020-03-01', INTERVAL '1 month'), array_repeat(1, 2), make_array(1, 2)",
            "SELECT replace('abc', 'b', ''), regexp_replace('abc', 'b|c', 'x', 'g'), array_to_string([1, NULL], ',', 'n')",
            "SELECT array_resize([1, 2], 3), array_concat([1], [2, 3]), named_struct('a', 1), [1, 2] || [3]",
            "SELECT x FROM (VALUES ('b'), ('a')) AS t(x) GROUP BY concat(x, 'c'), x ORDER BY concat(x, 'c')",
        ] {
            let of = async |ctx: &SessionContext| ctx.sql(sql).await?.to_string().await;
            assert_eq!(of(&ctx).await.expect(sql), of(&plain).await.expect(sql), "{sql}");
        }
    }
}
