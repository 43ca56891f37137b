#!/usr/bin/env python3
"""How long a browser takes to open the report of a model of seven billion weights.

    report.py COMMAND [CHROMIUM]

COMMAND is arrow-quant. The tensors' names and shapes are those of a 28-layer transformer, the figures made up. Prints the
time to write the page, its size, and the time until Chromium has laid it out, beside that of an empty page.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import median, print_table

RUNS = 5
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()
SHAPES = {
    "self_attn.q_proj.weight": [3584, 3584],
    "self_attn.k_proj.weight": [512, 3584],
    "self_attn.v_proj.weight": [512, 3584],
    "self_attn.o_proj.weight": [3584, 3584],
    "mlp.gate_proj.weight": [18944, 3584],
    "mlp.up_proj.weight": [18944, 3584],
    "mlp.down_proj.weight": [3584, 18944],
    "input_layernorm.weight": [3584],
    "post_attention_layernorm.weight": [3584],
    "self_attn.q_proj.bias": [3584],
    "self_attn.k_proj.bias": [512],
    "self_attn.v_proj.bias": [512],
}


def tensor(name, shape, figures):
    elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
    bits = figures.choice([2, 4, 4, 4, 8]) if len(shape) > 1 else None
    row = {"component": "", "tensor": name, "dtype": "BF16", "shape": shape, "elements": elements, "bits": bits}
    row |= {"group_size": bits and 128, "because": "target_bpw" if bits else "1-D"}
    row |= {"bytes": elements * ((bits or 16) * 128 + 32) // 1024, "max_abs_error": bits and 0.01}
    sqnr = bits and figures.gauss({2: 9.5, 4: 20.5, 8: 44.5}[bits], 0.8)
    return row | {"sqnr_db": sqnr, "cosine_similarity": sqnr and (1 - 10 ** (-sqnr / 10)) ** 0.5}


def manifest():
    figures = random.Random(7)
    tensors = [tensor(f"model.{name}", [152064, 3584], figures) for name in ("embed_tokens.weight", "lm_head.weight")]
    for layer in range(28):
        tensors += [tensor(f"model.layers.{layer}.{name}", shape, figures) for name, shape in SHAPES.items()]
    weights, stored = sum(t["elements"] for t in tensors), sum(t["bytes"] for t in tensors)
    totals = {"weights": weights, "original_bytes": 2 * weights, "stored_bytes": stored, "squared_error": 1.0}
    totals |= {"bits_per_weight": 8 * stored / weights, "compression_ratio": 2 * weights / stored}
    totals |= {"cosine_similarity": 0.995, "sqnr_db": 20.0}
    source = {"name": "seven-billion", "fingerprint": ""}
    head = {"format_version": 1, "created_by": "benchmark", "settings": {}, "source": source, "modality": "text"}
    return head | {"notes": [], "totals": totals, "tensors": tensors, "files": []}


def seconds(command):
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return median(taken)


def main(command, chromium="chromium"):
    with tempfile.TemporaryDirectory() as directory:
        model, page, empty = (Path(directory) / name for name in ("model", "page.html", "empty.html"))
        model.mkdir()
        (model / "arrow_quant.json").write_text(json.dumps(manifest()))
        empty.write_text("<!doctype html><title>empty</title>")
        write = seconds([command, "report", model, "--html", page])
        browser = [chromium, *FLAGS, f"--user-data-dir={directory}/profile", "--window-size=1280,4000", "--screenshot=/dev/null"]
        rows = [[path.stem, path.stat().st_size, f"{seconds([*browser, path]):.2f}"] for path in (empty, page)]
    print(f"written in {write:.3f} s")
    print()
    print_table(["page", "bytes", "Chromium, start to screenshot, s"], rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
