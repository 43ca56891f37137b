#!/usr/bin/env python3
"""The whole job, from a model in the page cache to a quantized model on disk, beside llama-quantize of the same model.

    job.py COMMAND BENCH KERNELS DIRECTORY

COMMAND is arrow-quant, BENCH the executable of the kernels' benchmark and KERNELS what it printed. Models are made in
DIRECTORY, and kept there for the next run: about 10 GB, with those for llama.cpp. Prints one table in Markdown.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import peers
import synth
from common import Run, fastest_set, kernel_rates, median, print_table, read_once

RUNS = 5
MODELS = {
    # name: (what the table calls it, weights, stored as, methods to measure)
    "transformer": ("1.003 billion BF16", 1_002_584_064, "BF16", ("mse", "minmax")),
    "tensor": ("one tensor, 4.03 GB F32", 30720 * 32768, "F32", ("mse",)),
}
THREADS = (1, 2)
HEADER = [
    "job",
    "threads",
    "wall s",
    "user+sys s",
    "anonymous MB",
    "VmHWM MB",
    "output MB",
    "kernel s",
    "write s",
    "wall ÷ (kernel + write)",
    "wall ÷ ours",
]


def size(path):
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_seconds(path, count):
    """Seconds to write so many bytes to a new file and wait for the disk."""
    block = os.urandom(1 << 20)
    seconds = []
    for _ in range(RUNS):
        os.sync()
        start = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for left in range(count, 0, -len(block)):
                file.write(block[:left])
            os.fdatasync(file.fileno())
        seconds.append(time.perf_counter() - start)
        path.unlink()
    return median(seconds)


def kernel_rate(bench, table, method, threads):
    """Million weights per second of the kernel alone: on one core from the table, on more by as many at once."""
    isa = fastest_set(table)
    name = f"quantize {method} INT4 g128 BF16"
    if threads == 1:
        return table[name, isa]
    command = [bench, "--bench", "speed", f"{name} {isa}"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
    return sum(kernel_rates(process.communicate()[0])[name, isa] for process in running)


def measure(command, out, times=None):
    """Medians over the runs, and the most memory of any; `times` reads wall and CPU from what the process printed."""
    runs = []
    for _ in range(RUNS):
        remove(out)
        os.sync()
        run = Run(command)
        if times:
            run.wall, run.cpu = times(run.output)
        runs.append(run)
    made = size(out)
    remove(out)
    return {
        "wall": median([run.wall for run in runs]),
        "cpu": median([run.cpu for run in runs]),
        "anonymous": max(run.anonymous for run in runs),
        "resident": max(run.resident for run in runs),
        "bytes": made,
    }


def row(job, threads, found):
    figures = [f"{found['wall']:.2f}", f"{found['cpu']:.2f}"]
    return [job, threads, *figures, *(f"{found[key] / 1e6:.0f}" for key in ("anonymous", "resident", "bytes"))]


def ours(command, bench, table, directory):
    """Rows of our own jobs, and the wall seconds of mse on the transformer by threads."""
    rows, walls = [], {}
    out = directory / "quantized"
    for name, (title, weights, dtype, methods) in MODELS.items():
        model = directory / name
        read_once(model)
        for method in methods:
            for threads in THREADS:
                flags = ["--bits", 4, "--group-size", 128, "--method", method, "--threads", threads]
                found = measure([command, "quantize", "--quiet", *flags, model, out], out)
                written = write_seconds(directory / "written", found["bytes"])
                if name == "transformer" and method == "mse":
                    walls[threads] = found["wall"]
                cells = row(f"{title} → {method} INT4 g128", threads, found)
                # The kernels' benchmark reads BF16.
                if dtype == "BF16":
                    kernel = weights / kernel_rate(bench, table, method, threads) / 1e6
                    cells += [f"{kernel:.2f}", f"{written:.2f}", f"{found['wall'] / (kernel + written):.2f}"]
                else:
                    cells += ["-", f"{written:.2f}", "-"]
                rows.append([*cells, "-"])
    return rows, walls


def theirs(directory, walls):
    """Rows of llama-quantize on the transformer."""
    if not peers.installed():
        missing = ["not installed", *["-"] * (len(HEADER) - 3)]
        return [[f"llama-quantize {file_type}", threads, *missing] for file_type in peers.FILE_TYPES for threads in THREADS]
    gguf, out = directory / "transformer.gguf", directory / "quantized.gguf"
    if not gguf.exists():
        peers.convert(directory / "transformer", gguf)
    with open(gguf, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    rows = []
    for file_type in peers.FILE_TYPES:
        for threads in THREADS:
            command = [sys.executable, peers.__file__, "quantize", gguf, out, file_type, threads]
            found = measure(command, out, lambda output: json.loads(output).values())
            ratio = f"{found['wall'] / walls[threads]:.2f}"
            rows.append([*row(f"llama-quantize {file_type}", threads, found), "-", "-", "-", ratio])
    return rows


def main(command, bench, kernels, directory):
    table = kernel_rates(Path(kernels).read_text())
    if not table:
        sys.exit(f"{kernels} holds no table of the kernels' benchmark")
    directory = Path(directory)
    for maker in (synth.transformer, synth.tensor):
        print(f"model: {directory / maker.__name__}", file=sys.stderr)
        maker(directory / maker.__name__)
    rows, walls = ours(command, bench, table, directory)
    rows += theirs(directory, walls)
    print(f"Whole jobs, models in the page cache: medians of {RUNS} runs, memory the most of any run\n")
    print_table(HEADER, rows)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
