"""What nobody should do, and what comes of it: an error of the package, and never a crash or a wait without end."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arrow_quant_v2 import ArrowQuantError, ArrowQuantV2, DiffusionQuantConfig, connect

# A child that hangs would be waited for until then.
TIMEOUT_S = 120


def printed(code: str, *arguments: str) -> str:
    """What a program prints, which must end well: a crash of it is not one of the tests."""
    command = [sys.executable, "-X", "faulthandler", "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# Configurations

NESTED = """
import sys

from arrow_quant_v2 import ConfigurationError, DiffusionQuantConfig

endless = []
endless.append(endless)
endless_mapping = {}
endless_mapping["a"] = endless_mapping
deep = []
for _ in range(200_000):
    deep = [deep]

config = DiffusionQuantConfig()
for value in (endless, endless_mapping, deep):
    for field in ("sensitive_layer_names", "layer_bit_widths", "bit_width"):
        for use in (lambda: DiffusionQuantConfig(**{field: value}), lambda: setattr(config, field, value)):
            try:
                use()
            except ConfigurationError as error:
                assert error.field == field, error.field
            else:
                sys.exit(f"{field} took it")
assert config == DiffusionQuantConfig()
print("refused")
"""


def test_values_that_have_no_end_are_refused() -> None:
    assert printed(NESTED) == "refused"


class Names(Sequence[str]):
    """Names that use the configuration while they are read."""

    def __init__(self, use: Callable[[], object]) -> None:
        self._use = use

    def __getitem__(self, index: Any) -> Any:
        return ["a", "b"][index]

    def __len__(self) -> int:
        self._use()
        return 2

    def __iter__(self) -> Iterator[str]:
        self._use()
        yield "a"
        self._use()
        yield "b"


USES: dict[str, Callable[[DiffusionQuantConfig], object]] = {
    "compared": lambda config: config == config,
    "compared with another": lambda config: (DiffusionQuantConfig() == config, config != DiffusionQuantConfig()),
    "read": lambda config: config.sensitive_layer_names,
    "shown": repr,
    "checked": lambda config: config.validate(),
    "set": lambda config: setattr(config, "bit_width", 8),
    "overridden": lambda config: config.apply_env_overrides(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_configuration_is_used_while_it_is_set(use: Callable[[DiffusionQuantConfig], object]) -> None:
    config = DiffusionQuantConfig()
    config.sensitive_layer_names = Names(lambda: use(config))
    assert config.sensitive_layer_names == ("a", "b")


# Arrow data

DEADLOCK = """
import datafusion
import numpy as np
import pyarrow as pa

from arrow_quant_v2 import connect


class Given:
    def __init__(self, capsule):
        self.capsule = capsule

    def __arrow_c_stream__(self, requested_schema=None):
        return self.capsule


# The memory is NumPy's, who needs Python's lock to give it back.
batches = [pa.record_batch({"a": pa.array(np.full(8192, float(i)))}) for i in range(64)]
table = pa.Table.from_batches(batches)
connection = connect(tables={"t": table})
capsule = connection.sql("select a*2 b from t").__arrow_c_stream__()
del table, batches
connection.register("t", pa.table({"a": [1.0]}))
frame = datafusion.SessionContext().from_arrow(Given(capsule), "doubled")
rows = frame.to_pydict()["b"]
print(len(rows), sum(rows))
"""


def test_a_stream_is_read_by_a_thread_that_holds_the_lock() -> None:
    rows, total = printed(DEADLOCK).split()
    assert int(rows) == 64 * 8192
    assert float(total) == 2 * 8192 * sum(range(64))


def structs(start: int = 0, length: int = 24) -> pa.StructArray:
    """Structs with a struct in them, some of them NULL."""
    numbers = pa.array([None if i % 7 == 3 else i for i in range(start, start + length)], pa.int64())
    texts = pa.array([f"row {i}" for i in range(start, start + length)])
    inner = pa.StructArray.from_arrays([numbers, texts], ["x", "s"], mask=pa.array([i % 5 == 2 for i in range(length)]))
    return pa.StructArray.from_arrays(
        [inner, texts], ["inner", "s"], mask=pa.array([i % 11 == 4 for i in range(length)])
    )


def fixed(values: pa.Array, size: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(values, size)


ARRAYS: dict[str, Callable[[], pa.Array]] = {
    "structs": structs,
    "structs of slices": lambda: pa.StructArray.from_arrays([structs()[5:17], structs()[3:15]], ["a", "b"]),
    "lists of one size": lambda: fixed(structs(), 2),
    "lists of one size of a slice": lambda: fixed(structs()[4:20], 2),
    "lists of one size of lists of one size": lambda: fixed(fixed(structs(), 2), 3),
    "structs of lists of one size": lambda: pa.StructArray.from_arrays([fixed(structs(), 3)[1:7]], ["l"]),
    "lists of one size of structs of them": lambda: fixed(pa.StructArray.from_arrays([fixed(structs(), 2)], ["l"]), 2),
    "lists": lambda: pa.ListArray.from_arrays(pa.array([0, 3, 3, 8, 12, 24]), structs()),
    "lists of lists of one size": lambda: pa.ListArray.from_arrays(pa.array([0, 3, 5, 12]), fixed(structs(), 2)),
    "lists of one size of lists": lambda: fixed(
        pa.ListArray.from_arrays(pa.array([0, 3, 3, 8, 12, 20, 24]), structs()), 2
    ),
}


class Struct:
    """A batch by the interface of arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self._batch.__arrow_c_array__(requested_schema)


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_slices_of_nested_arrays_have_their_rows(make: Callable[[], pa.Array]) -> None:
    array = make()
    connection = connect()
    for start, length in [(0, len(array)), (1, 2), (2, len(array) - 2), (len(array) - 1, 1), (1, 0)]:
        expected = array[start : start + length].to_pylist()
        whole = pa.table({"a": array})
        for table in [
            whole[start : start + length],
            pa.table({"a": array[start : start + length]}),
            Struct(whole.to_batches()[0].slice(start, length)),
        ]:
            connection.register("t", table)
            assert connection.sql("SELECT a FROM t").to_pyarrow()["a"].to_pylist() == expected, (start, length)
            found = connection.sql("SELECT a FROM t WHERE a IS NOT NULL").to_pyarrow()["a"].to_pylist()
            assert found == [row for row in expected if row is not None], (start, length)


def test_a_table_that_is_given_twice() -> None:
    class Given:
        def __init__(self) -> None:
            self.capsules = pa.record_batch({"a": np.arange(3.0)}).__arrow_c_array__()

        def __arrow_c_array__(self, requested_schema: object = None) -> Any:
            return self.capsules

    given, connection = Given(), connect()
    connection.register("t", given)
    with pytest.raises(ArrowQuantError, match="read before"):
        connection.register("u", given)
    assert connection.sql("SELECT a FROM t").to_pyarrow()["a"].to_pylist() == [0.0, 1.0, 2.0]


# Queries

LONG = """
import sys

from arrow_quant_v2 import connect

# A list of names of tensors, as programs write it: a statement may have 2,000 operators.
terms = 500
counted = "SELECT count(*) FROM (VALUES (1), (7), (-1)) t(a) WHERE"
queries = {
    "sum": ("SELECT " + "+".join(["1"] * terms), terms),
    "or": (f"{counted} {' OR '.join(f'a = {i}' for i in range(terms))}", 2),
    "and": (f"{counted} {' AND '.join(f'a <> {i}' for i in range(terms))}", 1),
    "union": (f"SELECT sum(a) FROM ({' UNION ALL '.join(['SELECT 1 AS a'] * 300)})", 300),
}
query, expected = queries[sys.argv[1]]
[row] = connect().sql(query).to_pyarrow().to_pylist()
[value] = row.values()
assert value == expected, value
print("answered")
"""


@pytest.mark.parametrize("kind", ["sum", "or", "and", "union"])
def test_a_query_may_be_long(kind: str) -> None:
    assert printed(LONG, kind) == "answered"


FORKED = """
import os
import signal
import sys

import pyarrow as pa

from arrow_quant_v2 import connect

connection = connect()
reader = pa.RecordBatchReader.from_stream(connection.sql("SELECT value FROM generate_series(1, 1000000000000)"))
reader.read_next_batch()
pid = os.fork()
if pid == 0:
    # Should it hang, let it not outlive this.
    signal.alarm(30)
    try:
        for _ in range(1000):
            reader.read_next_batch()
    except Exception as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(2)
_, status = os.waitpid(pid, 0)
# The parent reads on.
reader.read_next_batch()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_stream_that_was_begun_is_not_read_on_in_a_fork() -> None:
    assert printed(FORKED) == "0"


# Jobs


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode")
@pytest.mark.parametrize("which", ["model", "output", "both"])
def test_paths_that_are_no_text(which: str, tiny_model: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    model = tiny_model if which == "output" else tmp_path / f"model-{name}"
    out = tmp_path / ("out" if which == "model" else f"out-{name}")
    if model != tiny_model:
        shutil.copytree(tiny_model, model)
    before = sorted(os.listdir(tmp_path))
    try:
        result = ArrowQuantV2().quantize_model(model, out)
    except ArrowQuantError:
        assert sorted(os.listdir(tmp_path)) == before
    else:
        assert result["quantized_path"] == str(out)
        assert (out / "arrow_quant.json").exists()
        assert ArrowQuantV2().validate_quality(model, out)["passed"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("callback", [None, lambda progress, message: 1 / 0])
def test_a_filter_of_the_log_that_raises(
    callback: Any, digits_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise ZeroDivisionError("of the filter")

    # On every logger, for a filter is asked only for what is logged where it is.
    monkeypatch.setattr(logging.Logger, "filter", Failing().filter)
    logger = logging.getLogger("arrow_quant_v2")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    # Tensors that are below the floor are told.
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.95)
    try:
        result = ArrowQuantV2().quantize_model(digits_dit, tmp_path / "out", config, callback)
        quality = ArrowQuantV2().validate_quality(digits_dit, tmp_path / "out")
    finally:
        logger.setLevel(level)
    assert result["fallbacks"] and quality["passed"]
