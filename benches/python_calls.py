"""What python.py measures, in processes of their own that hold nothing else.

    python_calls.py quantize MODEL OUT THREADS
    python_calls.py arrays
    python_calls.py counter COMMAND MODEL OUT FLAG...

`quantize` does a job and prints the seconds of the call. `arrays` calls for arrays on one core and prints the median
milliseconds as JSON; it needs ml_dtypes. `counter` has a thread count on one core, while the other does nothing, runs
COMMAND, or a job of the same process, and prints the rates as JSON.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

if TYPE_CHECKING:
    import numpy as np

# Sizes of arrays in 2²⁰ bytes.
SIZES = (1, 2, 4, 8)
ITEM_SIZES = {"float32": 4, "bfloat16": 2}
GROUP_SIZE = 128
# As in the kernels' benchmark; and more weights than caches hold.
ROW_LENGTH = 4096
POOL_WEIGHTS = 64 << 20
CALLS = 201
ROUNDS = 3


def quantize(model: str, out: str, threads: int) -> float:
    """Seconds of a job."""
    config = DiffusionQuantConfig(bit_width=4, group_size=128, method="mse", num_threads=threads)
    start = time.perf_counter()
    ArrowQuantV2().quantize_diffusion_model(model, out, config)
    return time.perf_counter() - start


def pools() -> dict[str, np.ndarray[Any, Any]]:
    """Gaussian weights of each dtype, one after another."""
    import ml_dtypes
    import numpy as np

    piece = 0.02 * np.random.default_rng(2).standard_normal(1 << 20, np.float32)
    weights = np.tile(piece, POOL_WEIGHTS >> 20)
    return {"float32": weights, "bfloat16": weights.astype(ml_dtypes.bfloat16)}


def arrays() -> dict[str, dict[str, dict[str, float]]]:
    """Median milliseconds of `ArrowQuantV2.quantize` by dtype, method and size, which is "-" for a single group.

    Calls read one place after another, so weights come from memory as in the kernels' benchmark.
    """
    import statistics

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    quantizer = ArrowQuantV2()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dtype, pool in pools().items():
        found[dtype] = {}
        counts = {str(size): (size << 20) // ITEM_SIZES[dtype] for size in SIZES} | {"-": GROUP_SIZE}
        for method in ("minmax", "mse"):
            seconds: dict[str, list[float]] = {size: [] for size in counts}
            place = 0
            for _ in range(CALLS):
                for size, count in counts.items():
                    place = place if place + count <= pool.size else 0
                    array = pool[place : place + count].reshape(-1, min(ROW_LENGTH, count))
                    place += max(count, ROW_LENGTH)
                    start = time.perf_counter()
                    quantized = quantizer.quantize(array, bit_width=4, group_size=GROUP_SIZE, method=method)
                    seconds[size].append(time.perf_counter() - start)
                    del quantized
            found[dtype][method] = {size: 1e3 * statistics.median(taken) for size, taken in seconds.items()}
    return found


def counter(command: list[str], model: str, out: str) -> dict[str, list[float]] | None:
    """Million counts a second, in each round; None without a second core."""
    import shutil
    import subprocess
    import threading

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    counts, running = 0, True

    def count() -> None:
        nonlocal counts
        os.sched_setaffinity(0, {cores[1]})  # this thread's
        while running:
            counts += 1

    def rate(work: Callable[[], object]) -> float:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        before, start = counts, time.perf_counter()
        work()
        return (counts - before) / (time.perf_counter() - start) / 1e6

    # All that is started from here is held to the first core, the engine's threads too.
    os.sched_setaffinity(0, {cores[0]})
    thread = threading.Thread(target=count)
    thread.start()
    rates: dict[str, list[float]] = {"alone": [], "command": [], "job": []}
    try:
        for _ in range(ROUNDS):
            rates["alone"].append(rate(lambda: time.sleep(2)))
            rates["command"].append(rate(lambda: subprocess.run([*command, model, out], check=True)))
            rates["job"].append(rate(lambda: quantize(model, out, 1)))
    finally:
        running = False
        thread.join()
        shutil.rmtree(out, ignore_errors=True)
    return rates


def main(what: str, *arguments: str) -> None:
    if what == "quantize":
        model, out, threads = arguments
        print(quantize(model, out, int(threads)))
        return
    # Not with the job, whose memory is measured.
    import json

    if what == "arrays":
        print(json.dumps(arrays()))
    elif what == "counter":
        command, model, out, *flags = arguments
        print(json.dumps(counter([command, "quantize", *flags], model, out)))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
