"""Restores every tensor of a quantized model directory as docs/format.md specifies it, without our package."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

# BF16, which NumPy lacks, as its bits; dtypes that are not named here (F8_E4M3, F4 …) as their bytes.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8", "BOOL": "?", "I8": "i1", "U8": "u1"}
DTYPES |= {f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (16, 32, 64)}


def read_directory(path):
    """Full name of each tensor to its weights: f32 where they were quantized, else in their own dtype."""
    manifest, tables, chunks = json.loads((Path(path) / "arrow_quant.json").read_text(encoding="utf-8")), {}, {}
    if manifest["format_version"] not in (1, 2, 3):
        raise ValueError(f"{path}: format version {manifest['format_version']} is not 1, 2 or 3")
    for name, size in [(file["path"], file["bytes"]) for file in manifest["files"] + manifest.get("tables", [])]:
        if Path(name).is_absolute() or ".." in Path(name).parts or (Path(path) / name).stat().st_size != size:
            raise ValueError(f"{name} is not a file of {size} bytes in the directory")
        tables[name] = pq.ParquetFile(Path(path) / name).read().to_pylist()
    factors = {row["tensor"]: row["smooth"] for row in tables.get("smoothing.parquet", [])}
    if lost := {x["tensor"] for x in manifest.get("layers", []) if x["smoothing_alpha"] is not None} - factors.keys():
        raise ValueError(f"smoothing.parquet lacks {lost}")
    full_name = lambda row: "/".join(filter(None, [row["component"], row["tensor"]]))
    for row in [row for file in manifest["files"] for row in tables[file["path"]]]:
        chunks.setdefault(full_name(row), []).append(row)
    tensors = {full_name(tensor): tensor for tensor in manifest["tensors"]}
    return {n: restore(t, chunks.get(t.get("same_as") or n, []), factors.get(n)) for n, t in tensors.items()}


def restore(tensor, chunks, factors):
    kept, shape, elements = tensor["bits"] is None, tensor["shape"], tensor["elements"]
    dtype = DTYPES.get(tensor["dtype"], "u1")
    parts = [np.frombuffer(c["weights"]["data"], dtype) if kept else dequantize(**c["quantized"]) for c in chunks]
    ends = [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]  # in elements; in bytes if DTYPES lacks the dtype
    if any(c["start"] * ends[-1] != end * elements for c, end in zip(chunks, ends)) or elements > 2 * ends[-1]:
        raise ValueError(f"{tensor['tensor']}: elements are missing, or there twice")
    if kept:
        return np.concatenate([np.zeros(0, dtype), *parts]).reshape(shape if tensor["dtype"] in DTYPES else -1)
    inverse = np.float32(1) / np.array(factors or [1] * shape[1], "<f4").reshape(shape[1], *[1] * (len(shape) - 2))
    return np.concatenate(parts).reshape(shape) * inverse  # one for each index of axis 1


def dequantize(bits, group_size, scheme, parameter_dtype, length, row_length, codes, encoding=None, **q):
    bits = {f"int{n}": n for n in (2, 3, 4, 5, 6, 8)}[encoding or f"int{bits}"]
    dtype = dict(F16="<f2", F32="<f4")[parameter_dtype]
    groups = length // row_length * (per_row := -(-row_length // group_size))
    group = np.add.outer(np.arange(0, groups, per_row), np.arange(row_length) // group_size).ravel()
    scale = np.frombuffer(q["scales"], dtype).reshape(groups).astype("f8")[group]
    minimum = np.frombuffer(q["minima"], dtype).reshape(groups)[group] if scheme == "affine" else 0.0
    zeros = dict(affine=bytes(groups), symmetric=bytes([1 << bits - 1] * groups), asymmetric=q["zero_points"])[scheme]
    zero = np.arange(1 << bits)[np.frombuffer(zeros, "u1").reshape(groups)][group]  # an IndexError for what is no code
    stream = np.unpackbits(np.frombuffer(codes, "u1").reshape((length * bits + 7) // 8), bitorder="little")
    product = scale * (stream[: length * bits].reshape(length, bits) @ (1 << np.arange(bits)) - zero)  # exact in f64
    # Rounded to odd in f64 and then to f32, the sum is rounded once, as by a fused multiply-add in f32.
    lost = (product - ((weights := product + minimum) - (weights - product))) + (minimum - (weights - product))
    even = (lost != 0) & (weights.view("i8") % 2 == 0)
    return np.where(even, np.nextafter(weights, np.copysign(np.inf, lost)), weights).astype("f4")
