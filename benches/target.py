#!/usr/bin/env python3
"""A target size beside every uniform choice of the same size.

    target.py COMMAND MODEL...

COMMAND is arrow-quant. For each model all twelve pairs of bits and group size are run; then, for the size that each of
them has, a target of that size. Prints in Markdown the sum of squared errors of the target over that of the best uniform
choice that is no larger, the size reached over the target, and the time of planning over that of the job.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import median, print_table

RUNS = 5


def run(command, *arguments):
    return json.loads(subprocess.run([command, *map(str, arguments), "--json"], check=True, capture_output=True).stdout)


def quantized(command, model, out, *flags):
    shutil.rmtree(out, ignore_errors=True)
    return run(command, "quantize", model, out, "--min-accuracy", 0, *flags)


def seconds(arguments, out):
    taken = []
    for _ in range(RUNS):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        subprocess.run([*map(str, arguments), "--quiet"], check=True)
        taken.append(time.perf_counter() - start)
    return median(taken)


def rows(command, model, out):
    uniform = []
    for bits in (2, 4, 8):
        for group_size in (32, 64, 128, 256):
            report = quantized(command, model, out, "--bits", bits, "--group-size", group_size)
            uniform.append((report["stored_bytes"], report["squared_error"], f"INT{bits} g{group_size}"))
    # Of the smallest there is no other choice.
    for size, _, name in sorted(uniform)[1:]:
        best = min(error for stored, error, _ in uniform if stored <= size)
        flags = ["--target-model-size-mb", size / 1e6]
        report = quantized(command, model, out, *flags)
        plan = seconds([command, "plan", model, *flags, "--min-accuracy", 0], out)
        job = seconds([command, "quantize", model, out, *flags, "--min-accuracy", 0], out)
        yield [
            Path(model).name,
            name,
            f"{report['bits_per_weight']:.3f}",
            f"{report['squared_error'] / best:.3f}",
            f"{report['stored_bytes'] / size:.4f}",
            f"{plan:.3f}",
            f"{job:.3f}",
            f"{plan / job:.3f}",
        ]


def main(command, *models):
    header = ["model", "size of", "bits per weight", "error ÷ best uniform", "size ÷ target", "plan s", "job s", "plan ÷ job"]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        out = Path(directory) / "out"
        print_table(header, [row for model in models for row in rows(command, model, out)])


if __name__ == "__main__":
    main(*sys.argv[1:])
