//! Functions whose results can be far larger than their arguments. Here they take memory from the pool before they run, so that
//! `SELECT lpad('a', 2000000000)` is refused like a sort that is too large, and they run with the query, never while it is planned.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{
    DataType, FieldRef, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::prelude::SessionContext;

use crate::wire::value_bytes;

/// The bytes that a result has at most, roughly.
type Estimate = fn(&Arguments) -> Result<u64>;

/// The functions, by their first names.
const FUNCTIONS: [(&str, Estimate); 15] = [
    ("array_concat", sum),
    ("array_repeat", repeated_elements),
    ("array_resize", resized),
    ("array_to_string", joined_elements),
    ("concat", sum),
    ("concat_ws", joined),
    ("generate_series", series),
    ("lpad", padded),
    ("make_array", sum),
    ("named_struct", sum),
    ("range", series),
    ("regexp_replace", replaced_matches),
    ("repeat", repeated),
    ("replace", replaced),
    ("rpad", padded),
];

/// Results that are not counted: asking the pool would take longer.
const UNCOUNTED: u64 = 1 << 20;

/// The same session, in which these functions are bounded by its memory.
pub(crate) fn bounded(ctx: &SessionContext) -> SessionContext {
    let bounded = SessionContext::new_with_state(ctx.state());
    let pool = &ctx.runtime_env().memory_pool;
    for (name, estimate) in FUNCTIONS {
        // A session may have been given fewer functions.
        if let Ok(function) = ctx.udf(name) {
            bounded.register_udf(ScalarUDF::new_from_impl(Bounded::new(function, estimate, Arc::clone(pool))));
        }
    }
    bounded
}

/// A function that takes its result's memory from a pool while it computes it.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    signature: Signature,
    estimate: Estimate,
    pool: Arc<dyn MemoryPool>,
}

impl Bounded {
    fn new(inner: Arc<ScalarUDF>, estimate: Estimate, pool: Arc<dyn MemoryPool>) -> Self {
        // Of constants, the optimizer computes all others while it plans.
        let signature = Signature { volatility: Volatility::Volatile, ..inner.signature().clone() };
        Self { inner, signature, estimate, pool }
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
        &self.signature
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
        let reservation = MemoryConsumer::new(self.name()).register(&self.pool);
        if bytes > UNCOUNTED {
            reservation.try_grow(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        }
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

    /// The whole numbers of an argument, `otherwise` where there is none.
    fn numbers(&self, argument: Option<usize>, to: &DataType, otherwise: i64) -> Result<Vec<i64>> {
        let value = argument.and_then(|argument| self.values.get(argument));
        let Some(value) = value else { return Ok(vec![otherwise; self.rows]) };
        let array = cast(&cast(&value.to_array(self.rows)?, to)?, &DataType::Int64)?;
        Ok(array.as_primitive::<Int64Type>().iter().map(|number| number.unwrap_or(otherwise)).collect())
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

fn resized(args: &Arguments) -> Result<u64> {
    const EMPTY: u64 = 16;
    let new = over(&args.counts(1)?, &args.bytes(2)?, |count, fill| count.saturating_mul(EMPTY + fill));
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

fn joined_elements(args: &Arguments) -> Result<u64> {
    // Of a number, as a rule.
    const TEXT: u64 = 32;
    let between: Vec<_> = args.lengths(1)?.iter().zip(args.lengths(2)?).map(|(by, null)| by + null + TEXT).collect();
    let new = over(&args.lengths(0)?, &between, u64::saturating_mul);
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
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
    let steps: Vec<i128> = match args.values.get(2) {
        Some(step) if matches!(step.data_type(), DataType::Interval(_)) => {
            let steps = cast(&step.to_array(args.rows)?, &DataType::Interval(IntervalUnit::MonthDayNano))?;
            let steps = steps.as_primitive::<IntervalMonthDayNanoType>();
            // The shortest month, and the shortest day where clocks change.
            let nanoseconds = |IntervalMonthDayNano { months, days, nanoseconds }| {
                let days = i128::from(months) * 28 + i128::from(days);
                days * i128::from(day) * 23 / 24 + i128::from(nanoseconds)
            };
            steps.iter().map(|step| step.map_or(0, nanoseconds)).collect()
        }
        _ => args.numbers(Some(2), &DataType::Int64, 1)?.into_iter().map(i128::from).collect(),
    };
    let rows = start.iter().zip(&stop).zip(&steps).map(|((&start, &stop), &step)| {
        let way = (i128::from(stop) - i128::from(start)) * i128::from(unit);
        // The function says what is wrong with a step of nothing.
        if step == 0 || (way < 0) != (step < 0) { 1 } else { way / step + 1 }
    });
    let elements = rows.fold(0_u64, |sum, rows| sum.saturating_add(u64::try_from(rows).unwrap_or(u64::MAX)));
    Ok(elements.saturating_mul(8))
}

#[cfg(test)]
mod tests {
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
    const LARGE: [&str; 18] = [
        "array_concat(range(0, 200000), range(0, 200000))",
        "array_repeat('abcd', 500000)",
        "list_repeat(range(0, 1000), 500)",
        "array_resize([1], 500000, 2)",
        "array_to_string(range(0, 100000), 'a separator of some length')",
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

    #[tokio::test]
    async fn nothing_is_computed_while_it_is_planned() {
        let ctx = session(1 << 20);
        for expression in LARGE.iter().chain(&["range(0, 9000000000000)", "lpad('a', 2147483647)"]) {
            let frame = ctx.sql(&format!("SELECT {expression} AS x")).await.expect(expression);
            frame.create_physical_plan().await.expect(expression);
        }
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
