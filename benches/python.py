#!/usr/bin/env python3
"""What it costs to call the engine from Python, beside the command and the kernels.

    python.py COMMAND BENCH KERNELS DIRECTORY

COMMAND is arrow-quant, BENCH the executable of the kernels' benchmark and KERNELS what it printed. The model is that of
job.py, in DIRECTORY. Prints tables in Markdown: importing, calls for arrays, whole jobs, and how fast another thread
runs meanwhile. Needs arrow_quant_v2, numpy and ml_dtypes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import synth
from common import Run, fastest_set, kernel_rates, median, print_table, read_once
from job import remove

RUNS = 5
IMPORTS = 41
THREADS = (1, 2)
SIZES = (1, 2, 4, 8)
FLAGS = ["--quiet", "--bits", "4", "--group-size", "128", "--method", "mse"]
CALLS = [sys.executable, str(Path(__file__).with_name("python_calls.py"))]

# What must hold.
IMPORT_MS = 100
CALL_MS = 0.2
MEMORY_MB = 20
RATE_PERCENT = 90


def output_of(what: str, *arguments: object) -> Any:
    """What python_calls.py prints."""
    command = [*CALLS, what, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def verdict(holds: bool) -> str:
    return "yes" if holds else "**no**"


# ---------------------------------------------------------------- importing


def imports() -> None:
    """Time and memory of interpreters that import something, in turn."""
    codes = ("pass", "import numpy", "import arrow_quant_v2")
    seconds: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(IMPORTS):
        for code in codes:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[code].append(time.perf_counter() - start)
    walls = {code: 1e3 * median(taken) for code, taken in seconds.items()}
    rows = []
    for code in codes:
        # Memory is sampled, so the process stays for a while.
        run = Run([sys.executable, "-c", f"{code}\nimport time\ntime.sleep(0.2)"])
        above = walls[code] - walls["pass"]
        limit = [IMPORT_MS, verdict(above < IMPORT_MS)] if code == codes[-1] else ["-", "-"]
        memory = [f"{run.anonymous / 1e6:.0f}", f"{run.resident / 1e6:.0f}"]
        rows.append([f"`{code}`", f"{walls[code]:.1f}", f"{above:.1f}", *limit, *memory])
    print(f"Importing: medians of {IMPORTS} interpreters from start to end\n")
    header = ["python -c", "wall ms", "above `pass` ms", "limit ms", "holds", "anonymous MB", "VmHWM MB"]
    print_table(header, rows)


# ---------------------------------------------------------------- calls


def calls(bench: str, isa: str) -> None:
    """Calls for arrays of 4 MB beside the kernel's time: by a line through the sizes, and by the kernel's benchmark.

    The line has the cost of a call, whatever the size. What would grow with the size, such as a copy, is in the second.
    """
    sizes = [str(size) for size in SIZES]
    rows = []
    for dtype, methods in output_of("arrays").items():
        for method, milliseconds in methods.items():
            slope, _ = statistics.linear_regression(SIZES, [milliseconds[size] for size in sizes])
            kernels = {"slope": 4 * slope}
            if dtype == "bfloat16":
                # The kernels' benchmark reads BF16.
                kernels["kernels' benchmark"] = kernel_milliseconds(bench, method, isa, (4 << 20) // 2)
            for source, kernel in kernels.items():
                above = milliseconds["4"] - kernel
                cells = [f"{milliseconds[size]:.3f}" for size in ("-", *sizes)]
                cells += [source, f"{kernel:.3f}", f"{above:.3f}", f"{CALL_MS}", verdict(above < CALL_MS)]
                rows.append([dtype, method, *cells])
    print("`ArrowQuantV2.quantize` of an array, INT4 g128, one core: medians of calls in ms\n")
    header = ["dtype", "method", "128 weights", *(f"{size} MB" for size in sizes)]
    print_table([*header, "kernel by", "kernel, 4 MB", "above it", "limit", "holds"], rows)


def kernel_milliseconds(bench: str, method: str, isa: str, weights: int) -> float:
    """The kernel's own time for so many weights, measured now."""
    name = f"quantize {method} INT4 g128 BF16"
    command = [bench, "--bench", "speed", f"{name} {isa}"]
    table = kernel_rates(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return float(weights / table[name, isa] / 1e3)


# ---------------------------------------------------------------- jobs


def jobs(command: str, model: Path, out: Path) -> None:
    """Jobs from Python and by the command, in turn."""
    rows = []
    for threads in THREADS:
        commands = {
            "command": [command, "quantize", *FLAGS, "--threads", threads, model, out],
            "Python": [*CALLS, "quantize", model, out, threads],
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, line in commands.items():
                remove(out)
                os.sync()
                runs[name].append(Run(line))
        remove(out)
        walls = {name: median([run.wall for run in found]) for name, found in runs.items()}
        resident = {name: max(run.resident for run in found) / 1e6 for name, found in runs.items()}
        for name, found in runs.items():
            call = f"{median([float(run.output) for run in found]):.2f}" if name == "Python" else "-"
            cells = [name, threads, f"{walls[name]:.2f}", call, f"{walls[name] / walls['command']:.3f}"]
            cells += [f"{median([run.cpu for run in found]):.2f}", f"{max(run.anonymous for run in found) / 1e6:.0f}"]
            above = resident[name] - resident["command"]
            limit = ["-", "-", "-"] if name == "command" else [f"{above:.0f}", MEMORY_MB, verdict(above <= MEMORY_MB)]
            rows.append([*cells, f"{resident[name]:.0f}", *limit])
    print("1.003 billion BF16 → mse INT4 g128, the model in the page cache, in turn:")
    print(f"medians of {RUNS} runs, memory the most of any run\n")
    header = ["from", "threads", "wall s", "of it the call s", "wall ÷ command's", "user+sys s", "anonymous MB"]
    print_table([*header, "VmHWM MB", "above the command's MB", "limit MB", "holds"], rows)


# ---------------------------------------------------------------- other threads


def other_threads(command: str, model: Path, out: Path) -> None:
    """How fast a thread counts that has a core to itself."""
    rates = output_of("counter", command, model, out, *FLAGS, "--threads", 1)
    if rates is None:
        print("Other threads: not measured, this takes two cores\n")
        return
    alone = median(rates["alone"])
    rows = []
    for name, title in (("alone", "nothing"), ("command", "the command"), ("job", "a job of the same process")):
        percent = 100 * median(rates[name]) / alone
        limit = [f"{RATE_PERCENT} %", verdict(percent >= RATE_PERCENT)] if name == "job" else ["-", "-"]
        rows.append([title, f"{median(rates[name]):.1f}", f"{percent:.1f} %", *limit])
    print("A counting Python thread on one core, while another core runs something on one thread: medians\n")
    print_table(["on the other core", "10⁶ counts/s", "of its idle rate", "limit", "holds"], rows)


def main(command: str, bench: str, kernels: str, directory: str) -> None:
    table = kernel_rates(Path(kernels).read_text())
    if not table:
        sys.exit(f"{kernels} holds no table of the kernels' benchmark")
    model, out = Path(directory) / "transformer", Path(directory) / "quantized"
    synth.transformer(model)
    imports()
    calls(bench, fastest_set(table))
    read_once(model)
    jobs(command, model, out)
    other_threads(command, model, out)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
