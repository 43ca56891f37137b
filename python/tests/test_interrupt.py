"""What a job leaves to others while it runs: Ctrl-C, and other threads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

# Prints how far it is, and how it ended.
CHILD = """
import signal
import sys

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

# The process that started the tests may ignore Ctrl-C; then the tests could not be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_callback(progress, message):
    print(progress, flush=True)


config = DiffusionQuantConfig(num_threads=1)
try:
    ArrowQuantV2().quantize_diffusion_model(
        sys.argv[1], sys.argv[2], config, progress_callback, progress_interval_s=0.01, resume=True
    )
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
"""


# Reads a query that takes hours, and is sent a signal meanwhile: prints what it met, and the seconds it went on.
QUERY_CHILD = """
import os
import signal
import sys
import threading
import time

import pyarrow as pa

from arrow_quant_v2 import connect


class Handled(Exception):
    pass


def handler(*_):
    raise Handled


read, threads, number, sql = sys.argv[1], int(sys.argv[2]), getattr(signal, sys.argv[3]), sys.argv[4]
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGUSR1, handler)
connection = connect(models={"large": sys.argv[5]}, num_threads=threads)
result = connection.sql(sql)
# Once there is a stream, the query is planned.
result = pa.RecordBatchReader.from_stream(result) if read == "stream" else result
sent = 0


def send():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), number)


timer = threading.Timer(0.7, send)
timer.start()
try:
    # Where a library reads, Python hears of Ctrl-C after the library's own error.
    try:
        result.read_all() if read == "stream" else result.to_pyarrow()
    except Exception as error:
        first = error
        time.sleep(0.01)
        raise first
except BaseException as error:
    took = time.monotonic() - sent
    print(type(error).__name__, took, flush=True)
assert connection.sql("SELECT 1 AS one").to_pyarrow()["one"].to_pylist() == [1]
print(time.monotonic() - sent, flush=True)
"""

# A row of 1 GiB, which is worked on for as long as there are functions; and a join.
SETTINGS = [f"{bits}, {size}, '{s}'" for bits in (2, 4, 8) for size in (32, 64, 128) for s in ("affine", "symmetric")]
BUSY = [
    "SELECT "
    + " + ".join(f"sqnr(quantize(weights, {settings}))" for settings in SETTINGS)
    + " AS x FROM large.weights",
    "SELECT count(*) AS n FROM generate_series(1, 1000000) a(x), generate_series(1, 1000000) b(y) WHERE x + y > 0",
]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one row of 1 GiB. Its file takes no room on the disk."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 14, 1 << 14], "data_offsets": [0, 1 << 30]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 30))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal to send")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sql", BUSY)
@pytest.mark.parametrize(
    ("read", "number", "met"),
    [
        ("collect", "SIGINT", {"KeyboardInterrupt"}),
        ("collect", "SIGUSR1", {"Handled"}),
        ("stream", "SIGINT", {"KeyboardInterrupt"}),
        ("stream", "SIGUSR1", {"ArrowInvalid", "OSError", "ArrowException"}),
    ],
)
def test_signals_end_queries(read: str, number: str, met: set[str], sql: str, threads: int, large: Path) -> None:
    arguments = [sys.executable, "-c", QUERY_CHILD, read, str(threads), number, sql, str(large)]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    name, took, next_query = child.stdout.split()
    assert name in met, child.stdout + child.stderr
    # The query takes minutes; on a machine with nothing else to do it ends in 0.2 s.
    assert float(took) < 10 and float(next_query) < 10, child.stdout


def weights(model: Path) -> dict[str, bytes]:
    """The files of weights of a quantized model."""
    return {path.name: path.read_bytes() for path in (model / "weights").iterdir()}


def interrupted(model: Path, out: Path) -> float:
    """Starts a job and interrupts it when it is under way: the seconds that it went on."""
    # The slowest kernels leave time for the signal.
    environment = {**os.environ, "ARROW_QUANT_ISA": "scalar"}
    command = [sys.executable, "-c", CHILD, str(model), str(out)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        for line in child.stdout:
            if float(line) > 0.3:
                break
        child.send_signal(signal.SIGINT)
        sent = time.monotonic()
        told = child.stdout.read().split()
        took = time.monotonic() - sent
        said = child.stderr.read()
    assert told[-1:] == ["KeyboardInterrupt"], said
    assert "1.0" not in told
    assert child.returncode == 0, said
    assert "continue with resume=True" in said
    return took


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal to send")
def test_ctrl_c_ends_a_job_which_another_run_completes(big_model: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    # A machine that is busy with something else may be late once.
    for _ in range(3):
        took = interrupted(big_model, out)
        assert not out.exists()
        if took < 1.0:
            break
    assert took < 1.0

    quantizer = ArrowQuantV2()
    resumed = quantizer.quantize_diffusion_model(big_model, out, resume=True)
    assert resumed["resumed_parts"] > 0
    assert os.listdir(tmp_path) == ["out"]
    assert quantizer.quantize_diffusion_model(big_model, whole)["resumed_parts"] == 0
    assert weights(out) == weights(whole)
    assert len(weights(out)) > resumed["resumed_parts"]
    shutil.rmtree(out)
    shutil.rmtree(whole)


def test_other_threads_run_during_a_job(big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path) -> None:
    longest_pause = 0.0
    is_done = threading.Event()

    def count() -> None:
        nonlocal longest_pause
        last = time.monotonic()
        while not is_done.is_set():
            now = time.monotonic()
            longest_pause = max(longest_pause, now - last)
            last = now

    counter = threading.Thread(target=count)
    counter.start()
    try:
        started = time.monotonic()
        ArrowQuantV2().quantize_diffusion_model(big_model, tmp_path / "out", slow_config)
        took = time.monotonic() - started
    finally:
        is_done.set()
        counter.join()
    assert longest_pause < took / 2
    shutil.rmtree(tmp_path / "out")
