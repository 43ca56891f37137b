"""Rows laid end to end, so that types with blocks of 256 weights can be measured on a model whose rows hold no such block.

    python laid_rows.py lay MODEL CALIBRATION.parquet OUT      OUT/model and OUT/calibration.parquet with its second moments
    python laid_rows.py restore QUANTIZED MODEL OUT            floats of a quantized directory, in the shapes of MODEL

`lay` writes the layers of a calibration table with as many rows joined as it takes. Nothing else changes: the weights, and each
weight's place in its column, stay; the importance of a row is repeated; second moments get a diagonal block for each row. No runtime
reads such tensors; the figures say what a type can do. `restore` writes F32 safetensors and, in their metadata, the bits that weights
take in QUANTIZED, as the quality kit's evaluate.py reads them. Needs numpy, pyarrow, and for `restore` ArrowQuant's package.
"""

import json
import math
import pathlib
import shutil
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 256


def read_header(path):
    data = np.memmap(path, np.uint8, "r")
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def write(path, tensors, metadata=None):
    """`tensors`: dtype, shape and bytes by name."""
    header, offset = {"__metadata__": {"format": "pt"} | (metadata or {})}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for _, _, data in tensors.values():
            out.write(data.tobytes())


def joined(columns):
    return BLOCK // math.gcd(BLOCK, columns)


def lay(model, calibration, out):
    (out / "model").mkdir(parents=True, exist_ok=True)
    table = pq.read_table(calibration)
    names, tensors = set(table["tensor"].to_pylist()), {}
    for file in sorted(model.glob("*.safetensors")):
        header, data = read_header(file)
        for name in names & header.keys():
            entry = header[name]
            rows, columns = entry["shape"]
            count = joined(columns)
            if rows % count:
                raise SystemExit(f"{name}: {rows} rows of {columns} weights do not fill blocks of {BLOCK}")
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], [rows // count, columns * count], data[begin:end])
    write(out / "model" / "model.safetensors", tensors)
    shutil.copy(model / "config.json", out / "model")
    rows = table.to_pylist()
    for row in rows:
        for key in row:
            if key.startswith("channel_"):
                row[key] = row[key] * joined(len(row[key]))
    pq.write_table(pa.Table.from_pylist(rows, table.schema), out / "calibration.parquet")
    moments = pq.ParquetFile(calibration.with_suffix(".moments.parquet"))
    with pq.ParquetWriter(out / "calibration.moments.parquet", moments.schema_arrow, compression="none") as writer:
        for group in range(moments.num_row_groups):
            found = moments.read_row_group(group)
            parts = []
            for k in range(joined(found["channels"][0].as_py())):
                channels = found["channels"].to_numpy()
                columns = {name: found[name] for name in found.column_names}
                columns["channels"] = pa.array(channels * joined(int(channels[0])), pa.int32())
                columns["start"] = pa.array(found["start"].to_numpy() + k * channels, pa.int32())
                parts.append(pa.table(columns, schema=moments.schema_arrow))
            writer.write_table(pa.concat_tables(parts).combine_chunks())


def restore(quantized, model, out):
    from arrow_quant_v2 import load_quantized

    out.mkdir(parents=True, exist_ok=True)
    report = json.loads((quantized / "arrow_quant.json").read_text())
    stored = {entry["tensor"]: 8 * entry["bytes"] for entry in report["tensors"] if entry["bits"]}
    found, tensors = load_quantized(str(quantized)), {}
    for file in sorted(model.glob("*.safetensors")):
        header, data = read_header(file)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if name in stored:
                weights = np.ascontiguousarray(found[name].numpy("float32"), "<f4").reshape(entry["shape"])
                tensors[name] = ("F32", entry["shape"], weights)
            else:
                tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    write(out / "model.safetensors", tensors, {"stored_bits": json.dumps(stored)})
    shutil.copy(model / "config.json", out)


if __name__ == "__main__":
    command, *paths = sys.argv[1:] or [""]
    if (command, len(paths)) not in {("lay", 3), ("restore", 3)}:
        raise SystemExit(__doc__)
    {"lay": lay, "restore": restore}[command](*map(pathlib.Path, paths))
