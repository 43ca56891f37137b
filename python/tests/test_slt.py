"""The engine's SQL logic tests, ``tests/sql/*.slt``, through Python: on a connection, and those of functions in a stock
datafusion session. How their cells are written is told in ``tests/suite/sql.rs``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datafusion
import numpy as np
import pyarrow as pa
import pytest
from conftest import REPOSITORY

import arrow_quant_v2

FILES = sorted((REPOSITORY / "tests" / "sql").glob("*.slt"))
FILES_OF_FUNCTIONS = [file for file in FILES if file.name != "tables.slt"]


class Record(NamedTuple):
    """A statement or query, and what is to come of it: nothing said, an error, or types of columns and rows."""

    line: int
    sql: str
    error: str | None
    types: str | None
    rows: list[str]


def records(text: str) -> Iterator[Record]:
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(("statement ", "query "))]
    for start in starts:
        end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
        kind, _, said = lines[start].partition(" ")
        body = lines[start + 1 : end]
        if kind == "query":
            divider = body.index("----")
            yield Record(start + 1, "\n".join(body[:divider]), None, said, body[divider + 1 :])
        else:
            assert said == "ok" or said.startswith("error "), lines[start]
            error = None if said == "ok" else said.removeprefix("error ")
            yield Record(start + 1, "\n".join(body), error, None, [])


def type_of(column: pa.ChunkedArray) -> str:
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "B": pa.types.is_boolean,
        "I": pa.types.is_integer,
        "R": pa.types.is_floating,
        "T": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
    }
    return next((letter for letter, is_of in tests.items() if is_of(column.type)), "?")


def number(x: float) -> str:
    if not math.isfinite(x):
        return {math.inf: "inf", -math.inf: "-inf"}.get(x, "NaN")
    digits = f"{x:.6f}".rstrip("0")
    return "0.0" if digits in ("0.", "-0.") else f"{digits}0" if digits.endswith(".") else digits


def shown(cell: Any) -> str:
    if cell is None:
        return "NULL"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, (float, np.floating)):
        return number(float(cell))
    if isinstance(cell, bytes):
        return f"<{len(cell)} bytes>"
    if isinstance(cell, list):
        return f"[{', '.join(map(shown, cell))}]"
    if isinstance(cell, dict):
        return f"{{{', '.join(f'{name}: {shown(field)}' for name, field in cell.items())}}}"
    return str(cell) or "(empty)"


def spaced(text: str) -> str:
    return " ".join(text.split())


def problem(record: Record, run: Callable[[str], pa.Table]) -> str | None:
    """What is not as it is to be."""
    try:
        table = run(record.sql)
    except Exception as error:
        if record.error is not None and re.search(record.error, str(error)):
            return None
        return f"failed: {error}"
    if record.error is not None:
        return f"did not fail with: {record.error}"
    if record.types is None:
        return None
    types = "".join(map(type_of, table.columns))
    if types != record.types:
        return f"columns are {types}, not {record.types}"
    cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
    found = spaced("\n".join(" ".join(map(shown, row)) for row in cells))
    expected = spaced("\n".join(record.rows))
    if re.fullmatch(".*".join(map(re.escape, expected.split("<slt:ignore>"))), found) is None:
        return f"rows are:\n{found}\nnot:\n{expected}"
    return None


def check(file: Path, variables: dict[str, str], run: Callable[[str], pa.Table]) -> None:
    text = file.read_text(encoding="utf-8")
    for name, replacement in variables.items():
        text = text.replace(f"${name}", replacement)
    found = [(record, problem(record, run)) for record in records(text)]
    assert found
    problems = [f"{file.name}:{record.line}: {said}" for record, said in found if said is not None]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_a_connection(file: Path, digits_dit: Path, quantized_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    models = {"digits": digits_dit, "digits_int4": quantized_digits}
    connection = arrow_quant_v2.connect(models=models, num_threads=2)
    check(file, {"DIGITS_INT4": str(quantized_digits)}, lambda sql: pa.table(connection.sql(sql).collect()))


@pytest.mark.parametrize("file", FILES_OF_FUNCTIONS, ids=lambda file: file.stem)
def test_in_a_stock_session(file: Path) -> None:
    ctx = datafusion.SessionContext()
    arrow_quant_v2.register_all(ctx)
    check(file, {}, lambda sql: pa.table(ctx.sql(sql)))
