#!/usr/bin/env python3
"""Makes the golden directories: quantized models of every version of the stored format.

    make.py source                     writes source/: a tiny model, and a calibration table for it
    make.py directories COMMAND v1     quantizes it to v1/ with a build of arrow-quant that writes version 1
    make.py directories COMMAND v2     … version 2
    make.py directories COMMAND v3     … version 3

The directories of a version are made once, by the last build that wrote it, and never again: they stand for the files
that people have. The model needs numpy alone and is the same bytes each time; tables need pyarrow too. Beside each directory
lies NAME.safetensors: what the command itself restored its tensors to, by SQL over the table `weights`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "source"

# Safetensors' dtypes as NumPy has them; BF16, which NumPy lacks, as its bits.
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U8": "u1", "BOOL": "?"}

# A directory of every version: the scheme, the method, and whether the calibration table is used. Version 1 has no
# smoothing, version 2 always.
PLAIN = {
    "affine": ("affine", "mse", False),
    "asymmetric": ("asymmetric", "unbiased", False),
    "symmetric": ("symmetric", "minmax", False),
}
SMOOTHED = {f"{name}-smoothed": (scheme, method, True) for name, (scheme, method, _) in PLAIN.items()}
DIRECTORIES = {"v1": PLAIN, "v2": SMOOTHED, "v3": PLAIN | SMOOTHED}

BIT_WIDTHS = {
    "down.weight": 2,
    "sparse.weight": 2,
    "up.weight": 4,
    "gate.weight": 4,
    "conv.weight": 4,
    "embed.weight": 4,
    "head.weight": 4,
    "out.weight": 8,
    "tiny.weight": 8,
    "double.weight": 8,
    "kept.weight": 16,
}


def bf16(array):
    """The bits of bfloat16: to nearest, ties to even."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors):
    """Writes tensors given as name to (dtype, array); a BF16 array holds its bits as uint16."""
    header, offset, parts = {}, 0, []
    for name, (dtype, array) in tensors.items():
        part = np.ascontiguousarray(array, NUMPY[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
        parts.append(part)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_safetensors(path):
    """Tensor name to (dtype, array)."""
    data = Path(path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: (t["dtype"], np.frombuffer(data[end:][slice(*t["data_offsets"])], NUMPY[t["dtype"]]).reshape(t["shape"]))
        for name, t in header.items()
    }


def source_tensors():
    """The tensors of the model: name to (dtype, array)."""
    random = np.random.default_rng(15)

    def normal(*shape):
        return random.standard_normal(shape).astype("<f4")

    sparse = normal(4, 64)
    sparse[1], sparse[2, :32] = 0, 0.5
    embed = normal(12, 64)
    return {
        "up.weight": ("F32", normal(8, 96)),  # rows of three whole groups
        "down.weight": ("F32", normal(12, 37)),  # rows that end within a group and within a byte
        "gate.weight": ("F16", normal(6, 131)),  # likewise, at 4 bits
        "out.weight": ("BF16", bf16(normal(8, 50))),
        "double.weight": ("F64", normal(4, 64).astype("<f8") / 3),
        "conv.weight": ("F32", normal(5, 6, 3, 3)),  # a short last axis: rows of 54
        "tiny.weight": ("F32", 1e-9 * normal(4, 64)),  # f16 cannot hold the scales
        "sparse.weight": ("F32", sparse),  # groups of one value, which have no scale
        "embed.weight": ("F32", embed),
        "head.weight": ("F32", embed),  # the same bytes: stored once
        "kept.weight": ("BF16", bf16(normal(3, 40))),
        "norm.weight": ("F16", normal(96)),  # one dimension: kept
        "temperature": ("F32", normal(1).reshape(())),
        "steps": ("I64", np.arange(-3, 60, 7)),
        "mask": ("BOOL", np.arange(21).reshape(3, 7) % 4 == 0),
        "nothing": ("F32", np.zeros((0, 32))),
    }


def write_source():
    """Writes the model, its configuration and its calibration table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_safetensors(SOURCE / "model.safetensors", source_tensors())
    (SOURCE / "config.json").write_text(json.dumps({"model_type": "golden"}) + "\n")
    rows = []
    for tensor, channels in {"up.weight": 96, "gate.weight": 131, "conv.weight": 6, "tiny.weight": 64}.items():
        for timestep in (0, 500):
            # Channels of very different widths: these are what smoothing is for.
            width = (10.0 ** (np.arange(channels) % 5 - 2) * (1 + timestep / 1000)).astype("<f4")
            row = {"tensor": tensor, "timestep": timestep, "samples": 16}
            rows.append(row | {"channel_min": -width, "channel_max": width, "channel_mean_square": width**2 / 9})
    lists = [(name, pa.list_(pa.float32())) for name in ("channel_min", "channel_max", "channel_mean_square")]
    kinds = [("tensor", pa.string()), ("timestep", pa.int64()), ("samples", pa.int64()), *lists]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), SOURCE / "calibration.parquet")


def quantize(command, model, out, scheme, method, *more):
    """A quantized copy of a model, by the command."""
    flags = ["--scheme", scheme, "--method", method, "--min-accuracy", "0", *more]
    subprocess.run([command, "quantize", "--quiet", model, out, *flags], check=True)


def restored(command, directory):
    """What the command itself restores the tensors of a directory to: full name to (dtype, flat array)."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "weights.parquet"
        columns = "component, tensor, chunk, weights"
        copy = f"COPY (SELECT {columns} FROM weights('{directory}')) TO '{file}' STORED AS PARQUET"
        subprocess.run([command, "sql", copy], check=True, stdout=subprocess.DEVNULL)
        rows = pq.read_table(file).to_pylist()
    pieces = {}
    for row in sorted(rows, key=lambda row: row["chunk"]):
        name = f"{row['component']}/{row['tensor']}" if row["component"] else row["tensor"]
        dtype, chunks = pieces.setdefault(name, (row["weights"]["dtype"], []))
        chunks.append(row["weights"]["data"])
    return {name: (dtype, np.frombuffer(b"".join(chunks), NUMPY[dtype])) for name, (dtype, chunks) in pieces.items()}


def make_directories(command, version):
    """Makes the directories of a version, and beside each what the command restores it to."""
    shutil.rmtree(HERE / version, ignore_errors=True)
    (HERE / version).mkdir()
    widths = [f"--layer-bit-widths={name}={bits}" for name, bits in BIT_WIDTHS.items()]
    for name, (scheme, method, is_smoothed) in DIRECTORIES[version].items():
        calibration = ["--calibration", SOURCE / "calibration.parquet"] if is_smoothed else []
        out = HERE / version / name
        with tempfile.TemporaryDirectory() as temporary:
            # The calibration table is no part of the model, whose name goes into the manifest.
            model = Path(temporary) / "source"
            model.mkdir()
            for file in ("model.safetensors", "config.json"):
                shutil.copy(SOURCE / file, model)
            quantize(command, model, out, scheme, method, "--group-size", "32", *widths, *calibration)
        manifest = json.loads((out / "arrow_quant.json").read_text())
        if f"v{manifest['format_version']}" != version:
            sys.exit(f"{command} writes version {manifest['format_version']} of the format, not {version}")
        shapes = {name: array.shape for name, (_, array) in source_tensors().items()}
        found = restored(command, out)
        # A tensor without elements has no rows.
        expected = {n: (d, a.reshape(shapes[n])) for n, (d, a) in found.items()} | {
            n: source_tensors()[n] for n in shapes.keys() - found.keys()
        }
        write_safetensors(HERE / version / f"{name}.safetensors", {n: expected[n] for n in shapes})


if __name__ == "__main__":
    if sys.argv[1:] == ["source"]:
        write_source()
    elif len(sys.argv) == 4 and sys.argv[1] == "directories" and sys.argv[3] in DIRECTORIES:
        make_directories(Path(sys.argv[2]).resolve(), sys.argv[3])
    else:
        sys.exit(__doc__)
