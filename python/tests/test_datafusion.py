"""The functions in sessions of the stock datafusion package."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import datafusion
import numpy as np
import pyarrow as pa
import pytest
from datafusion import SessionContext

import arrow_quant_v2
from arrow_quant_v2 import ConfigurationError, Connection, _native, functions

SCALAR = [
    "cosine_similarity",
    "dequantize",
    "max_abs_error",
    "quantize",
    "scale_channels",
    "sqnr",
    "tensor_stats",
    "to_floats",
    "weighted_sum",
]
AGGREGATE = ["cosine_similarity_agg", "max_abs_error_agg", "sqnr_agg", "tensor_stats_agg"]


def vectors() -> pa.Table:
    """Pairs of vectors, alike but not equal, some NULL, in groups and chunks."""
    random = np.random.default_rng(7)
    lengths = random.integers(1, 300, 40)
    a = [random.standard_normal(n).astype(np.float32) for n in lengths]
    b = [(x + 0.1 * random.standard_normal(len(x))).astype(np.float32) for x in a]
    lists = pa.list_(pa.float32())
    table = pa.table(
        {
            "row": pa.array(range(40), pa.int64()),
            "part": [f"part {i % 3}" for i in range(40)],
            "bits": pa.array([(2, 4, 8)[i % 3] for i in range(40)], pa.int32()),
            "a": pa.array([None if i % 7 == 0 else x for i, x in enumerate(a)], lists),
            "b": pa.array([None if i % 5 == 0 else x for i, x in enumerate(b)], pa.large_list(pa.float64())),
            "c": pa.FixedSizeListArray.from_arrays(random.standard_normal(40 * 96).astype(np.float16), 96),
        }
    )
    return pa.concat_tables([table[:11], table[11:]])


@pytest.fixture(scope="module")
def connection(digits_dit: Path) -> Connection:
    return arrow_quant_v2.connect(models={"digits": digits_dit}, tables={"vectors": vectors()})


@pytest.fixture
def stock(connection: Connection) -> SessionContext:
    """A stock session with the same data and all functions."""
    ctx = SessionContext()
    arrow_quant_v2.register_all(ctx)
    ctx.from_arrow(vectors(), "vectors")
    weights = connection.sql("SELECT tensor, shape, chunk, weights FROM digits.weights")
    ctx.from_arrow(weights, "weights")
    return ctx


def same(a: Any, b: Any) -> bool:
    """Equality but for the order in which floats were added up."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


SCALAR_QUERIES = [
    "quantize(a, 4, 32)",
    "quantize(a, bits, 64, 'symmetric', 'minmax')",
    "quantize(c, 2, 32, 'asymmetric')",
    "quantize([0.0, 1.0, 2.0], 2, 32, [1.0, 1.0, 100.0])",
    "dequantize(quantize(b, 8, 256))",
    "to_floats(b)",
    "to_floats(dequantize(quantize(c, bits, 128)))",
    "cosine_similarity(a, b)",
    "cosine_similarity(quantize(a, 4, 32))",
    "scale_channels([1.0, 2.0, 3.0], [2.0, 1.0, 0.5])",
    "weighted_sum(0.25, a, 0.75, a)",
    "sqnr(a, b)",
    "sqnr(c, dequantize(quantize(c, 4, 32)))",
    "sqnr(quantize(c, bits, 32))",
    "max_abs_error(a, b)",
    "max_abs_error(quantize(b, 4, 32))",
    "tensor_stats(a)",
    "tensor_stats(c)['std']",
]

AGGREGATE_QUERIES = [
    "cosine_similarity_agg(a, b)",
    "cosine_similarity_agg(quantize(a, 4, 32))",
    "sqnr_agg(a, b)",
    "sqnr_agg(quantize(c, bits, 32))",
    "sqnr_agg(c, dequantize(quantize(c, 2, 64))) FILTER (WHERE bits > 2)",
    "max_abs_error_agg(a, b)",
    "max_abs_error_agg(quantize(b, 4, 32))",
    "tensor_stats_agg(a)",
    "tensor_stats_agg(c)['rms']",
]


def check(stock: SessionContext, connection: Connection, query: str) -> list[dict[str, Any]]:
    """The rows of a query, which are those of the engine's own session."""
    found, expected = pa.table(stock.sql(query)), pa.table(connection.sql(query))
    rows = found.to_pylist()
    assert found.schema.types == expected.schema.types
    assert same(rows, expected.to_pylist())
    return rows


@pytest.mark.parametrize("expression", SCALAR_QUERIES)
def test_scalar_functions(stock: SessionContext, connection: Connection, expression: str) -> None:
    rows = check(stock, connection, f"SELECT row, {expression} AS found FROM vectors ORDER BY row")
    assert len(rows) == 40
    assert any(row["found"] is not None for row in rows)


@pytest.mark.parametrize("expression", AGGREGATE_QUERIES)
def test_aggregate_functions(stock: SessionContext, connection: Connection, expression: str) -> None:
    rows = check(stock, connection, f"SELECT part, {expression} AS found FROM vectors GROUP BY part ORDER BY part")
    assert [row["part"] for row in rows] == ["part 0", "part 1", "part 2"]
    [row] = check(stock, connection, f"SELECT {expression} AS found FROM vectors")
    assert row["found"] is not None


def test_aggregate_functions_over_windows(stock: SessionContext, connection: Connection) -> None:
    query = "SELECT row, sqnr_agg(a, b) OVER (PARTITION BY part) AS db FROM vectors ORDER BY row"
    assert len(check(stock, connection, query)) == 40


def test_the_weights_of_a_model(stock: SessionContext, connection: Connection) -> None:
    query = """
        SELECT tensor, sqnr_agg(quantize(weights, 4, 128)) AS db,
               cosine_similarity_agg(weights, dequantize(quantize(weights, 2, 64))) AS cosine,
               tensor_stats_agg(weights)['n'] AS n
        FROM {} GROUP BY tensor ORDER BY tensor
    """
    found = pa.table(stock.sql(query.format("weights"))).to_pylist()
    expected = pa.table(connection.sql(query.format("digits.weights"))).to_pylist()
    assert len(found) == 52
    assert sum(row["n"] for row in found) == 1_257_988
    assert same(found, expected)


def test_every_function_of_the_engine_is_an_attribute() -> None:
    assert sorted(function.name for function in _native.scalar_functions()) == SCALAR
    assert sorted(function.name for function in _native.aggregate_functions()) == AGGREGATE
    assert set(functions.__all__) == {*SCALAR, *AGGREGATE, "register_all"}
    for name in SCALAR + AGGREGATE:
        assert getattr(functions, name).name == name


@pytest.mark.parametrize("name", SCALAR)
def test_a_scalar_function_alone(name: str) -> None:
    function = getattr(functions, name)
    ctx = SessionContext()
    ctx.register_udf(datafusion.udf(function))
    assert ctx.udf(name).name == name
    # The capsule itself is taken as well.
    assert datafusion.udf(function.__datafusion_scalar_udf__()).name == name


@pytest.mark.parametrize("name", AGGREGATE)
def test_an_aggregate_function_alone(name: str) -> None:
    function = getattr(functions, name)
    ctx = SessionContext()
    ctx.register_udaf(datafusion.udaf(function))
    assert ctx.udaf(name).name == name
    assert datafusion.udaf(function.__datafusion_aggregate_udf__()).name == name


def test_a_function_alone_brings_no_others() -> None:
    ctx = SessionContext()
    ctx.register_udf(datafusion.udf(functions.max_abs_error))
    assert ctx.sql("SELECT max_abs_error([1.0, 2.0], [1.5, 2.0]) AS e").to_pydict() == {"e": [0.5]}
    with pytest.raises(Exception, match="sqnr"):
        ctx.sql("SELECT sqnr([1.0], [2.0])").collect()


def test_functions_in_expressions() -> None:
    from datafusion import col, lit

    quantize, sqnr_agg = datafusion.udf(functions.quantize), datafusion.udaf(functions.sqnr_agg)
    ctx = SessionContext()
    arrow_quant_v2.register_all(ctx)
    frame = ctx.from_arrow(vectors(), "vectors")
    found = frame.aggregate([], [sqnr_agg(quantize(col("c"), lit(4), lit(32))).alias("db")]).to_pydict()
    assert same(found, ctx.sql("SELECT sqnr_agg(quantize(c, 4, 32)) AS db FROM vectors").to_pydict())


@pytest.mark.parametrize(
    "query, message",
    [
        ("SELECT quantize(a, 7, 32) FROM vectors", "bits is 7, allowed: 2, 3, 4, 5, 6 or 8"),
        ("SELECT quantize(a, 4, 32, 'best') FROM vectors", "scheme or method is 'best'"),
        ("SELECT sqnr(row) FROM vectors", "expects a quantized value"),
        ("SELECT quantize(a, bits + 3, 32) FROM vectors WHERE row = 1", "bits is 7, allowed: 2, 3, 4, 5, 6 or 8"),
        ("SELECT sqnr_agg(a, c) FROM vectors WHERE a IS NOT NULL", "expected"),
    ],
)
def test_errors_say_the_same(stock: SessionContext, query: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        stock.sql(query).collect()


def test_the_setting_that_is_documented_has_structs_made_once(stock: SessionContext) -> None:
    query = (
        "EXPLAIN SELECT q['bits'], q['codes'], q['errors']['sum_ee'] FROM (SELECT quantize(c, 4, 32) AS q FROM vectors)"
    )
    stock.sql("SET datafusion.optimizer.enable_leaf_expression_pushdown = false").collect()
    [physical] = [row["plan"] for row in pa.table(stock.sql(query)).to_pylist() if row["plan_type"] == "physical_plan"]
    assert physical.count("quantize(") == 1


def test_registering_changes_no_setting() -> None:
    config = datafusion.SessionConfig().with_information_schema(True)
    ctx, untouched = SessionContext(config), SessionContext(config)
    arrow_quant_v2.register_all(ctx)
    settings = "SELECT name, value FROM information_schema.df_settings ORDER BY name"
    assert ctx.sql(settings).to_pydict() == untouched.sql(settings).to_pydict()


# ---------------------------------------------------------------- between engines


def test_results_are_tables_of_a_stock_session(stock: SessionContext, connection: Connection) -> None:
    result = connection.sql(
        "SELECT tensor, sqnr_agg(quantize(weights, 4, 128)) AS db FROM digits.weights GROUP BY tensor"
    )
    stock.from_arrow(result, "figures")
    joined = stock.sql("SELECT count(*) AS n FROM figures JOIN weights ON figures.tensor = weights.tensor").to_pydict()
    assert joined == {"n": [56]}


def test_results_are_read_on_threads_of_a_stock_session(stock: SessionContext, connection: Connection) -> None:
    result = connection.sql("SELECT elements FROM digits.tensors ORDER BY tensor LIMIT 40")

    def elements(rows: pa.Array) -> pa.Array:
        return pa.table(result)["elements"].combine_chunks().take(rows)

    function = datafusion.udf(elements, [pa.int64()], pa.int64(), "stable", "elements")
    stock.register_udf(function)
    found = pa.table(stock.sql("SELECT elements(row) AS n FROM vectors ORDER BY row"))
    assert found["n"].to_pylist() == pa.table(result)["elements"].to_pylist()


def test_queries_of_a_stock_session_are_tables(stock: SessionContext) -> None:
    connection = arrow_quant_v2.connect()
    connection.register("v", stock.sql("SELECT row, a FROM vectors WHERE a IS NOT NULL"))
    found = pa.table(connection.sql("SELECT sqnr_agg(quantize(a, 4, 32)) AS db FROM v")).to_pylist()
    assert same(found, stock.sql("SELECT sqnr_agg(quantize(a, 4, 32)) AS db FROM vectors").to_pylist())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("version", ["54.1.0", "56.0.0", "5.5.0", "550.0.0"])
def test_another_major_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    ctx = SessionContext()
    monkeypatch.setattr(datafusion, "__version__", version)
    with pytest.raises(ConfigurationError) as caught:
        arrow_quant_v2.register_all(ctx)
    assert f"datafusion is {version}, allowed: 55" in str(caught.value)
    assert arrow_quant_v2.__version__ in str(caught.value)
    assert 'pip install "datafusion==55.*"' in str(caught.value)
    assert caught.value.field == "ctx"
    with pytest.raises(Exception, match="sqnr"):
        ctx.sql("SELECT sqnr([1.0], [2.0])").collect()


@pytest.mark.parametrize("version", ["54.1.0", "56.0.0"])
def test_single_functions_are_refused_to_another_major_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(datafusion, "__version__", version)
    for refused in [
        functions.refuse_other_versions,
        lambda: functions.sqnr.__datafusion_scalar_udf__(),
        lambda: functions.sqnr_agg.__datafusion_aggregate_udf__(),
    ]:
        with pytest.raises(ConfigurationError, match=f"datafusion is {version}, allowed: 55") as caught:
            refused()
        assert caught.value.field == "ctx"


def test_functions_do_not_load_datafusion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "datafusion")
    functions.refuse_other_versions()
    assert functions.sqnr.__datafusion_scalar_udf__() is not None
    assert functions.sqnr_agg.__datafusion_aggregate_udf__() is not None
    assert "datafusion" not in sys.modules


def test_other_versions_of_55_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datafusion, "__version__", "55.3.1")
    arrow_quant_v2.register_all(SessionContext())


@pytest.mark.parametrize("ctx", [None, "ctx", SessionContext], ids=["None", "text", "class"])
def test_what_is_no_session_is_refused(ctx: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"allowed: a datafusion\.SessionContext") as caught:
        arrow_quant_v2.register_all(ctx)
    assert caught.value.field == "ctx"


def test_without_datafusion_there_is_a_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datafusion", None)
    with pytest.raises(ImportError, match='datafusion is not installed: pip install "datafusion==55'):
        arrow_quant_v2.register_all(None)
