"""SQL: models and Python's tables as tables, results as streams of Arrow data that anything reads."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datafusion
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowQuantError,
    ConfigurationError,
    Connection,
    ModelNotFoundError,
    QuantizationError,
    Result,
)

# Of every tensor its name, dtype, elements and SQNR at 4 bits: text, integers and floats, without NULL.
FIGURES = """
    SELECT t.tensor, t.dtype, t.elements, w.db
    FROM digits.tensors t
    JOIN (SELECT tensor, sqnr_agg(quantize(weights, 4, 128)) AS db FROM digits.weights GROUP BY tensor) w
      ON t.tensor = w.tensor
    ORDER BY t.tensor
"""

# More rows than could ever be held.
ENDLESS = "SELECT value FROM generate_series(1, 1000000000000)"

MATRIX = "blocks.0.fc1.weight"


@pytest.fixture
def connection(digits_dit: Path, quantized_digits: Path) -> Connection:
    return arrow_quant_v2.connect(models={"digits": digits_dit, "digits_int4": quantized_digits})


def rows(result: object) -> list[dict[str, Any]]:
    return pa.table(result).to_pylist()


def value(result: object) -> Any:
    """The only value of a result."""
    [row] = rows(result)
    [only] = row.values()
    return only


# ---------------------------------------------------------------- models and tables


def test_a_model_is_a_schema(connection: Connection) -> None:
    assert value(connection.sql("SELECT count(*) FROM digits.tensors")) == 52
    assert value(connection.sql("SELECT sum(tensor_stats(weights)['n']) FROM digits.weights")) == 1_257_988
    assert value(connection.sql("SELECT count(DISTINCT tensor) FROM digits_int4.quantized")) == 27


@pytest.mark.parametrize("kind", [str, Path])
def test_models_are_registered_by_text_and_by_path(digits_dit: Path, kind: type) -> None:
    connection = arrow_quant_v2.connect()
    connection.register_model("m", kind(digits_dit))
    assert value(connection.sql("SELECT count(*) FROM m.tensors")) == 52


def test_a_model_needs_no_name(digits_dit: Path) -> None:
    connection = arrow_quant_v2.connect()
    assert value(connection.sql(f"SELECT count(*) FROM tensors('{digits_dit}')")) == 52


class Exported:
    """Somebody's own table."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


PLAN = pa.table({"tensor": [MATRIX, "blocks.0.fc2.weight"], "bits": [4, 8]})

TABLES: dict[str, Callable[[], object]] = {
    "pyarrow table": lambda: PLAN,
    "pyarrow table of two chunks": lambda: pa.concat_tables([PLAN[:1], PLAN[1:]]),
    "pyarrow record batch": lambda: PLAN.to_batches()[0],
    "pyarrow stream": lambda: PLAN.to_reader(),
    "polars": lambda: pl.DataFrame(PLAN.to_pydict()),
    "pandas": lambda: pd.DataFrame(PLAN.to_pydict()),
    "DuckDB": lambda: duckdb.from_arrow(PLAN),
    "own class": lambda: Exported(PLAN),
    "our table": lambda: arrow_quant_v2.connect(tables={"t": PLAN}).sql("SELECT * FROM t").collect(),
    "our result": lambda: arrow_quant_v2.connect(tables={"t": PLAN}).sql("SELECT * FROM t"),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_tables_of_other_libraries_are_registered(connection: Connection, table: Callable[[], object]) -> None:
    connection.register("plan", table())
    query = """
        SELECT p.tensor, p.bits, sqnr_agg(quantize(w.weights, p.bits, 64)) > 15 AS good
        FROM digits.weights w JOIN plan p ON w.tensor = p.tensor GROUP BY p.tensor, p.bits ORDER BY p.bits
    """
    expected = [row | {"good": True} for row in PLAN.to_pylist()]
    # Streams can be read once; tables made of them can be asked again.
    assert rows(connection.sql(query)) == expected
    assert rows(connection.sql(query)) == expected


def test_tables_are_given_at_once_and_replaced(connection: Connection) -> None:
    connection = arrow_quant_v2.connect(tables={"t": pa.table({"a": [1]})})
    assert value(connection.sql("SELECT a FROM t")) == 1
    before = connection.sql("SELECT a FROM t")
    connection.register("t", pa.table({"a": ["two"]}))
    assert value(connection.sql("SELECT a FROM t")) == "two"
    # A query that was planned keeps the table that it was planned for.
    assert value(before) == 1


def test_a_table_that_is_a_query_on_the_same_connection(connection: Connection) -> None:
    connection.register("names", connection.sql("SELECT tensor FROM digits.tensors"))
    assert value(connection.sql("SELECT count(*) FROM names JOIN digits.tensors USING (tensor)")) == 52


NO_TABLES = {"dict": {"a": [1]}, "list": [1, 2], "None": None, "name": "digits", "array": pa.array([1, 2])}


@pytest.mark.parametrize("table", NO_TABLES.values(), ids=NO_TABLES.keys())
def test_what_is_no_table_is_refused(connection: Connection, table: object) -> None:
    with pytest.raises(ConfigurationError):
        connection.register("t", table)


def test_numbers_of_threads_are_checked() -> None:
    assert value(arrow_quant_v2.connect(num_threads=1).sql("SELECT 1")) == 1
    with pytest.raises(ConfigurationError) as caught:
        arrow_quant_v2.connect(num_threads=-1)
    assert caught.value.field == "num_threads"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_threads", "x"),
        ("num_threads", 10**30),
        ("num_threads", 1.5),
        ("num_threads", 1025),
        ("models", [1]),
        ("models", 3),
        ("models", {"m": 3}),
        ("models", {1: "m"}),
        ("tables", [1]),
        ("tables", {1: PLAN}),
    ],
)
def test_arguments_that_are_not_allowed(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=argument) as caught:
        arrow_quant_v2.connect(**{argument: value})
    assert caught.value.field == argument


def test_models_and_tables_are_given_by_any_mapping(digits_dit: Path) -> None:
    models = MappingProxyType({"m": digits_dit})
    connection = arrow_quant_v2.connect(models=models, tables=ChainMap({"t": PLAN}))
    assert value(connection.sql("SELECT count(*) FROM m.tensors JOIN t USING (tensor)")) == 2


def test_a_table_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'?t'? is of the type int"):
        arrow_quant_v2.connect(tables={"plan": PLAN, "t": 3})


# ---------------------------------------------------------------- readers


def of_duckdb(result: object) -> list[tuple[Any, ...]]:
    return duckdb.sql("SELECT * FROM result ORDER BY tensor").fetchall()


def of_pandas(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame.itertuples(index=False, name=None))


def of_pyarrow(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


READERS: dict[str, Callable[[Result], list[tuple[Any, ...]]]] = {
    "pyarrow": lambda result: of_pyarrow(pa.table(result)),
    "pyarrow, a stream": lambda result: of_pyarrow(pa.RecordBatchReader.from_stream(result).read_all()),
    "to_pyarrow": lambda result: of_pyarrow(result.to_pyarrow()),
    "polars": lambda result: pl.DataFrame(result).rows(),
    "to_polars": lambda result: result.to_polars().rows(),
    "to_pandas": lambda result: of_pandas(result.to_pandas()),
    "DuckDB": of_duckdb,
    "a table, pyarrow": lambda result: of_pyarrow(pa.table(result.collect())),
    "a table, to_pyarrow": lambda result: of_pyarrow(result.collect().to_pyarrow()),
    "a table, polars": lambda result: pl.DataFrame(result.collect()).rows(),
    "a table, to_polars": lambda result: result.collect().to_polars().rows(),
    "a table, to_pandas": lambda result: of_pandas(result.collect().to_pandas()),
    "a table, DuckDB": lambda result: of_duckdb(result.collect()),
}
if hasattr(pd.DataFrame, "from_arrow"):  # from pandas 3.0 on
    READERS["pandas"] = lambda result: of_pandas(pd.DataFrame.from_arrow(result))


@pytest.fixture(scope="session")
def figures(digits_dit: Path) -> list[tuple[Any, ...]]:
    connection = arrow_quant_v2.connect(models={"digits": digits_dit})
    return of_pyarrow(pa.table(connection.sql(FIGURES)))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_all_readers_read_the_same(
    connection: Connection, figures: list[tuple[Any, ...]], read: Callable[[Result], list[tuple[Any, ...]]]
) -> None:
    found = read(connection.sql(FIGURES))
    assert len(found) == 52
    for row, expected in zip(found, figures, strict=True):
        assert row[:3] == expected[:3]
        # Partitions are added up in whatever order they come.
        assert row[3] == pytest.approx(expected[3], rel=1e-9, nan_ok=True)


def test_lists_and_structs_are_read(connection: Connection) -> None:
    query = f"SELECT shape, tensor_stats(weights) AS stats FROM digits.weights WHERE tensor = '{MATRIX}'"
    result = connection.sql(query)
    [expected] = rows(result)
    assert expected["shape"] == [512, 128]
    assert expected["stats"]["n"] == 65_536
    assert pl.DataFrame(result).to_dicts() == [expected]
    assert duckdb.sql("SELECT * FROM result").fetchall() == [tuple(expected.values())]


def test_the_schema_is_known_before_the_query_runs(connection: Connection) -> None:
    result = connection.sql(ENDLESS.replace("value", "value, 'x' AS text"))
    assert result.column_names == ["value", "text"]
    assert pa.schema(result).names == ["value", "text"]


def test_a_table_tells_its_size(connection: Connection) -> None:
    table = connection.sql("SELECT tensor, elements FROM digits.tensors").collect()
    assert (table.num_rows, len(table), table.column_names) == (52, 52, ["tensor", "elements"])


def test_empty_results_have_columns(connection: Connection) -> None:
    result = connection.sql("SELECT tensor FROM digits.tensors WHERE false")
    assert pa.table(result).column_names == ["tensor"]
    assert pl.DataFrame(result).shape == (0, 1)
    assert result.collect().num_rows == 0


@pytest.mark.parametrize("library", ["polars", "pyarrow", "pandas"])
def test_a_library_that_is_missing_is_named(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    result = connection.sql("SELECT 1 AS a")
    monkeypatch.setitem(sys.modules, library, None)
    for readable in (result, result.collect()):
        with pytest.raises(ImportError, match=f"pip install .*{library}"):
            getattr(readable, f"to_{library}")()


# ---------------------------------------------------------------- no copies


def addresses(column: pa.ChunkedArray) -> list[int]:
    """Where each value, or the first element of each list, lies in memory."""
    found: list[int] = []
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type):
            values, places = chunk.values, chunk.offsets.to_numpy()[:-1]
            width = values.type.bit_width // 8
            start = values.buffers()[1].address + values.offset * width
        elif pa.types.is_string(chunk.type):
            _, offsets, data = chunk.buffers()
            places, width = np.frombuffer(offsets, np.int32)[chunk.offset :][: len(chunk)], 1
            start = data.address
        else:
            places, width = chunk.offset + np.arange(len(chunk)), chunk.type.bit_width // 8
            start = chunk.buffers()[1].address
        found += (start + places.astype(np.int64) * width).tolist()
    return sorted(found)


def test_a_registered_table_is_not_copied() -> None:
    count = 1000
    table = pa.table(
        {
            "integer": pa.array(range(count), pa.int64()),
            "float": pa.array(np.random.default_rng(1).standard_normal(count)),
            "text": [f"row {i}" for i in range(count)],
            "list": pa.array([[float(i)] * 8 for i in range(count)], pa.list_(pa.float32())),
        }
    )
    table = pa.concat_tables([table[:300], table[310:]])
    connection = arrow_quant_v2.connect(tables={"t": table})
    for name in table.column_names:
        found = pa.table(connection.sql(f"SELECT {name} FROM t"))[name]
        assert addresses(found) == addresses(table[name]), name
    collected = connection.sql("SELECT * FROM t").collect().to_pyarrow()
    assert addresses(collected["list"]) == addresses(table["list"])


def test_numpy_to_polars_through_a_query_without_a_copy() -> None:
    weights = np.random.default_rng(2).standard_normal(50)
    connection = arrow_quant_v2.connect(tables={"t": pa.table({"w": pa.array(weights)})})
    series = pl.DataFrame(connection.sql("SELECT w FROM t"))["w"]
    assert series.to_numpy(allow_copy=False).ctypes.data == weights.ctypes.data


def payloads(table: pa.Table) -> list[pa.Buffer]:
    """The buffers of bytes of a column of weights."""
    buffers = [buffer for chunk in table["weights"].chunks for buffer in chunk.field("data").buffers()[2:]]
    return sorted(buffers, key=lambda buffer: buffer.address)


def test_weights_are_the_mapped_file(connection: Connection, digits_dit: Path) -> None:
    query = connection.sql(f"SELECT weights FROM digits.weights WHERE tensor = '{MATRIX}'")
    first, second = pa.table(query), pa.table(query)
    assert [(b.address, b.size) for b in payloads(first)] == [(b.address, b.size) for b in payloads(second)]

    data = (digits_dit / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8:end])[MATRIX]["data_offsets"]
    assert b"".join(b.to_pybytes() for b in payloads(first)) == data[end + start : end + stop]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "query, message",
    [
        ("SELECT", "."),
        ("SELEC 1", "SELEC"),
        ("SELECT * FROM nothing", "nothing"),
        ("SELECT nothing FROM digits.tensors", "nothing"),
        ("SELECT nothing(1)", "nothing"),
        ("SELECT 1 / 0", "zero"),
        ("SELECT quantize([1.0], 2)", "found 2 arguments"),
        ("SELECT quantize(['NaN'::DOUBLE], 2, 32)", "NaN"),
    ],
)
def test_a_query_that_fails_is_an_error_of_the_package(connection: Connection, query: str, message: str) -> None:
    with pytest.raises(ArrowQuantError, match=message) as caught:
        connection.sql(query).collect()
    assert isinstance(caught.value, (QuantizationError, ConfigurationError))


def test_an_error_while_a_stream_is_read_is_told(connection: Connection) -> None:
    result = connection.sql("SELECT quantize([1.0], bits, 32) FROM (VALUES (2), (7)) AS t(bits)")
    with pytest.raises(Exception, match="bits is 7, allowed: 2, 3, 4, 5, 6 or 8"):
        pa.table(result)
    with pytest.raises(ArrowQuantError, match="bits is 7, allowed: 2, 3, 4, 5, 6 or 8"):
        result.collect()


def test_a_model_that_is_not_there_is_told(connection: Connection, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    attempts: list[Callable[[], object]] = [
        lambda: arrow_quant_v2.connect(models={"m": missing}),
        lambda: connection.register_model("m", missing),
        lambda: connection.sql(f"SELECT * FROM weights('{missing}')").collect(),
    ]
    for attempt in attempts:
        with pytest.raises(ModelNotFoundError, match="no model at") as caught:
            attempt()
        assert caught.value.path == str(missing)


def test_a_name_that_is_taken_is_told(connection: Connection, digits_dit: Path) -> None:
    with pytest.raises(ConfigurationError, match="digits"):
        connection.register_model("digits", digits_dit)


def test_the_quantized_rows_of_an_original_are_not_there(connection: Connection, digits_dit: Path) -> None:
    with pytest.raises(ArrowQuantError, match="no quantized model at"):
        connection.sql(f"SELECT * FROM quantized('{digits_dit}')").collect()


# ---------------------------------------------------------------- the files, read by others

# Of each row of the files: whether `quantized` is NULL, its bits and codes, and the dtype of `weights`.
Fields = list[tuple[bool, int | None, bytes | None, str | None]]


def fields_by_pyarrow(parts: Path) -> Fields:
    table = pq.read_table(parts)
    flat = table.flatten()
    columns = [flat[name].to_pylist() for name in ("quantized.bits", "quantized.codes", "weights.dtype")]
    return list(zip(table["quantized"].is_null().to_pylist(), *columns, strict=True))


def fields_by_polars(parts: Path) -> Fields:
    quantized, weights = pl.col("quantized"), pl.col("weights")
    fields = (quantized.struct.field("bits"), quantized.struct.field("codes"), weights.struct.field("dtype"))
    return pl.read_parquet(parts / "*.parquet").select(quantized.is_null().alias("kept"), *fields).rows()


def fields_by_duckdb(parts: Path) -> Fields:
    query = "SELECT quantized IS NULL, quantized.bits, quantized.codes, weights.dtype"
    return duckdb.sql(f"{query} FROM read_parquet('{parts}/*.parquet')").fetchall()


def fields_by_datafusion(parts: Path) -> Fields:
    ctx = datafusion.SessionContext()
    ctx.register_parquet("parts", str(parts))
    fields = "quantized IS NULL AS a, quantized['bits'] AS b, quantized['codes'] AS c, weights['dtype'] AS d"
    return list(zip(*pa.table(ctx.sql(f"SELECT {fields} FROM parts")).to_pydict().values(), strict=True))


@pytest.mark.parametrize("read", [fields_by_pyarrow, fields_by_polars, fields_by_duckdb, fields_by_datafusion])
def test_fields_of_null_values_are_null(read: Callable[[Path], Fields], quantized_digits: Path) -> None:
    found = read(quantized_digits / "weights")
    assert len(found) == 56
    assert sum(kept for kept, *_ in found) == 25
    for kept, bits, codes, dtype in found:
        assert (bits is None, codes is None, dtype is None) == (kept, kept, not kept)
        if kept:
            assert dtype == "BF16"
        else:
            assert bits == 4 and isinstance(codes, bytes) and codes


# ---------------------------------------------------------------- statements


def test_copy_writes_at_once(connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "tensors.parquet"
    result = connection.sql(f"COPY (SELECT * FROM digits.tensors) TO '{path}' STORED AS PARQUET")
    assert pq.read_table(path).num_rows == 52
    written = path.stat().st_mtime_ns
    assert value(result) == value(result) == 52
    assert path.stat().st_mtime_ns == written


def test_a_statement_runs_once_however_often_it_is_read(connection: Connection) -> None:
    connection.sql("CREATE TABLE t(a BIGINT) AS VALUES (1)")
    inserted = connection.sql("INSERT INTO t VALUES (2), (3)")
    assert [value(inserted), value(inserted), value(inserted.collect())] == [2, 2, 2]
    assert value(connection.sql("SELECT count(*) FROM t")) == 3


def test_a_table_that_exists_is_not_created_again(connection: Connection) -> None:
    connection.sql("CREATE TABLE t AS VALUES (1)").collect()
    with pytest.raises(ArrowQuantError, match="exist"):
        connection.sql("CREATE TABLE t AS VALUES (1)")


def test_set_holds_for_the_connection_and_no_other(connection: Connection) -> None:
    def rows_of_a_batch(of: Connection) -> str:
        [row] = rows(of.sql("SHOW datafusion.execution.batch_size"))
        return row["value"]

    other = arrow_quant_v2.connect()
    before = rows_of_a_batch(other)
    connection.sql("SET datafusion.execution.batch_size = 7")
    assert rows_of_a_batch(connection) == "7"
    assert rows_of_a_batch(other) == before


def test_views_are_queries_with_a_name(connection: Connection) -> None:
    connection.sql("CREATE VIEW matrices AS SELECT tensor FROM digits.tensors WHERE array_length(shape) > 1")
    assert value(connection.sql("SELECT count(*) FROM matrices")) == 27


# ---------------------------------------------------------------- streams


def test_results_are_read_again_and_again(connection: Connection) -> None:
    result = connection.sql("SELECT tensor FROM digits.tensors ORDER BY tensor")
    first = pa.table(result)
    assert first.num_rows == 52
    assert pa.table(result) == first
    assert pl.DataFrame(result).height == 52


def test_results_are_read_by_several_threads(connection: Connection, figures: list[tuple[Any, ...]]) -> None:
    result = connection.sql(FIGURES)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda _: pa.table(result), range(16)))
    names = [row[0] for row in figures]
    assert all(table["tensor"].to_pylist() == names for table in tables)


def test_threads_share_a_connection(connection: Connection) -> None:
    def elements(tensor: str) -> int:
        return value(connection.sql(f"SELECT elements FROM digits.tensors WHERE tensor = '{tensor}'"))

    found = {row["tensor"]: row["elements"] for row in rows(connection.sql("SELECT * FROM digits.tensors"))}
    with ThreadPoolExecutor(8) as pool:
        assert dict(zip(found, pool.map(elements, found), strict=True)) == found


def test_results_are_read_inside_asyncio(connection: Connection) -> None:
    result = connection.sql("SELECT count(*) FROM digits.tensors")

    async def main() -> list[int]:
        here = value(result)
        there = await asyncio.gather(*(asyncio.to_thread(value, result) for _ in range(4)))
        return [here, *there]

    assert asyncio.run(main()) == [52] * 5


def test_rows_come_before_the_query_is_done(connection: Connection) -> None:
    result = connection.sql(ENDLESS)
    reader = pa.RecordBatchReader.from_stream(result)
    assert reader.read_next_batch()["value"][0].as_py() == 1
    # What is not read on ends, and is in the way of nothing.
    del reader
    assert value(connection.sql("SELECT count(*) FROM digits.tensors")) == 52
    again = pa.RecordBatchReader.from_stream(result)
    assert again.read_next_batch()["value"][0].as_py() == 1


def test_a_query_that_nobody_waits_for_ends(connection: Connection) -> None:
    # It would take hours to its first row.
    reader = pa.RecordBatchReader.from_stream(connection.sql(ENDLESS.replace("value", "sum(value) AS total")))
    del reader
    assert value(connection.sql("SELECT 1")) == 1


def test_results_outlive_their_connection(digits_dit: Path) -> None:
    result = arrow_quant_v2.connect(models={"m": digits_dit}).sql("SELECT tensor, weights FROM m.weights")
    reader = pa.RecordBatchReader.from_stream(result)
    del result
    table = reader.read_all()
    del reader
    assert sum(len(row["data"]) for row in table["weights"].to_pylist()) == 2_515_976
