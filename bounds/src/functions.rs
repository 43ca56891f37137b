//! Functions whose results can be far larger than their arguments. Here they take memory from the pool before they run, so that
//! `SELECT lpad('a', 2000000000)` is refused like a sort that is too large. While a statement is planned, what would be large is left
//! to the query: planning has no memory of its own, and its rules compare and copy constants again and again.

mod estimates;

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, exec_err, resources_err};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

use estimates::{Arguments, Estimate, FUNCTIONS};

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

#[cfg(test)]
mod tests {
    use datafusion::error::DataFusionError;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::SessionConfig;

    use super::*;
    use crate::sizes::value_bytes;

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
