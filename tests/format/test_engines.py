"""Stock engines read version 3 of the stored format and give NULL for the fields of kept tensors."""

from pathlib import Path

import datafusion
import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "tests/data/format"
DIRECTORIES = sorted(path.parent for path in GOLDEN.glob("v3/*/arrow_quant.json"))

# Of a quantized value, from its first field to those of its inner struct.
FIELDS = ("encoding", "bits", "group_size", "scheme", "method", "parameter_dtype", "length", "row_length", "codes", "scales")
INNER = ("n", "sum_ww", "sum_qq", "sum_wq", "sum_ee", "max_abs_error")


def with_pyarrow(path):
    table = pq.read_table(path)
    quantized = table["quantized"]
    fields = [pc.struct_field(quantized, field) for field in FIELDS]
    fields += [pc.struct_field(quantized, ["errors", field]) for field in INNER]
    return list(zip(table["tensor"].to_pylist(), *(field.to_pylist() for field in fields)))


def query(table):
    fields = ", ".join([f"quantized['{field}']" for field in FIELDS] + [f"quantized['errors']['{n}']" for n in INNER])
    return f"SELECT tensor, {fields} FROM {table}"


def with_datafusion(path):
    session = datafusion.SessionContext()
    session.register_parquet("part", str(path))
    batches = session.sql(query("part")).collect()
    return [tuple(row) for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns))]


def with_duckdb(path):
    return duckdb.sql(query(f"'{path}'")).fetchall()


def with_polars(path):
    quantized, errors = polars.col("quantized"), polars.col("quantized").struct.field("errors")
    fields = [quantized.struct.field(field).alias(field) for field in FIELDS]
    fields += [errors.struct.field(field).alias(f"errors.{field}") for field in INNER]
    return polars.read_parquet(path).select("tensor", *fields).rows()


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
@pytest.mark.parametrize("read", [with_pyarrow, with_datafusion, with_duckdb, with_polars])
def test_fields_of_kept_tensors_are_null(read, directory):
    kept = quantized = 0
    for path in sorted((directory / "weights").glob("*.parquet")):
        stored = {(row["tensor"], row["chunk"]): row for row in pq.ParquetFile(path).read().to_pylist()}
        for (tensor, *fields), row in zip(read(path), stored.values(), strict=True):
            value = row["quantized"]
            assert tensor == row["tensor"]
            if value is None:
                assert fields == [None] * len(fields), tensor
                kept += 1
            else:
                expected = [value[field] for field in FIELDS] + [value["errors"][field] for field in INNER]
                assert fields == expected, tensor
                assert fields[0] == f"int{value['bits']}"
                quantized += 1
    assert kept > 3 and quantized > 3


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_every_field_is_nullable(directory):
    for path in (directory / "weights").glob("*.parquet"):
        schema = pq.ParquetFile(path).schema_arrow
        assert schema.field("quantized").type.field(0).name == "encoding"
        for struct in ("quantized", "weights"):
            assert schema.field(struct).nullable
            assert all(field.nullable for field in leaves(schema.field(struct).type))


def leaves(struct):
    """The fields of a struct and of structs inside it."""
    for field in struct:
        yield field
        if pa.types.is_struct(field.type):
            yield from leaves(field.type)
