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
    manifest = json.loads((Path(path) / "arrow_quant.json").read_text(encoding="utf-8"))
    if manifest["format_version"] not in (1, 2, 3):
        raise ValueError(f"{path}: format version {manifest['format_version']} is not 1, 2 or 3")
    tables = {file["path"]: pq.ParquetFile(Path(path) / file["path"]).read().to_pylist()
              for file in manifest["files"] + manifest.get("tables", [])}  # fmt: skip
    factors = {row["tensor"]: row["smooth"] for row in tables.get("smoothing.parquet", [])}
    chunks = {}
    for row in sorted((r for f in manifest["files"] for r in tables[f["path"]]), key=lambda row: row["chunk"]):
        chunks.setdefault(full_name(row), []).append(row)
    tensors = {full_name(tensor): tensor for tensor in manifest["tensors"]}
    return {n: restore(t, chunks.get(t.get("same_as") or n, []), factors.get(n)) for n, t in tensors.items()}


def full_name(row):
    return f"{row['component']}/{row['tensor']}" if row["component"] else row["tensor"]


def restore(tensor, chunks, factors):
    if tensor["bits"] is None:
        data = np.frombuffer(b"".join(c["weights"]["data"] for c in chunks), DTYPES.get(tensor["dtype"], "u1"))
        return data.reshape(tensor["shape"] if tensor["dtype"] in DTYPES else -1)
    weights = np.concatenate([dequantize(**c["quantized"]) for c in chunks]).reshape(tensor["shape"])
    inverse = np.float32(1) / np.array(factors or [1], "<f4")  # one for each index of axis 1
    return weights * inverse.reshape(-1, *[1] * (weights.ndim - 2))


def dequantize(bits, group_size, scheme, parameter_dtype, length, row_length, codes, encoding=None, **q):
    if encoding not in (None, f"int{bits}"):
        raise ValueError(f"the encoding {encoding} is not known")
    index, dtype = np.arange(length), DTYPES[parameter_dtype]
    group = index // row_length * -(-row_length // group_size) + index % row_length // group_size
    scale, minimum, zero = np.frombuffer(q["scales"], dtype).astype("f8")[group], 0.0, 2 ** (bits - 1)
    if scheme != "symmetric":  # affine has minima, asymmetric has zero points
        minimum = np.frombuffer(q["minima"], dtype).astype("f8")[group] if scheme == "affine" else 0.0
        zero = np.frombuffer(q["zero_points"], "u1")[group] if scheme == "asymmetric" else 0
    stream = np.unpackbits(np.frombuffer(codes, "u1"), bitorder="little")[: length * bits]
    product = scale * (stream.reshape(length, bits) @ (1 << np.arange(bits)) - zero)  # exact in f64
    # One rounding, as of a fused multiply-add in f32: where f64 loses a part of the sum, its last bit is made odd, so
    # that rounding to f32, of less than half the bits, goes the way of the exact sum, on whichever side of a tie it is.
    weights = product + minimum
    part = weights - product
    lost = (product - (weights - part)) + (minimum - part)
    even = (lost != 0) & (weights.view("i8") % 2 == 0)
    weights.view("i8")[even] += np.where((lost > 0) == (weights > 0), 1, -1)[even]
    return weights.astype("f4")
