"""What the command writes and reports, against NumPy.

Nothing of our own code is used here: safetensors files are read byte by byte, Parquet files with pyarrow, and weights
are restored by the documented formulas. The environment's ARROW_QUANT is the command, default target/debug/arrow-quant.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = os.environ.get("ARROW_QUANT", str(ROOT / "target/debug/arrow-quant"))
MODEL = ROOT / "tests/data/digits-dit"

BITS = (2, 4, 8)
SCHEMES = ("affine", "asymmetric", "symmetric")
METHODS = ("minmax", "mse")
SETTINGS = [(bits, group, scheme) for bits, group in ((2, 64), (4, 128), (8, 32)) for scheme in SCHEMES]

# Cosine similarities and errors absolutely, decibels too.
AGREEMENT = 1e-6


# ---------------------------------------------------------------- the command


def run(*arguments):
    """The standard output of the command."""
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sql(query):
    """The rows of a query."""
    return [json.loads(line) for line in run("sql", "--format", "json", query).splitlines()]


def quantize(model, out, bits, group_size, scheme="affine", method="mse"):
    """A quantized copy of a model."""
    flags = ["--bits", bits, "--group-size", group_size, "--scheme", scheme, "--method", method]
    flags += ["--min-accuracy", 0]  # or the poorest settings would get more bits
    run("quantize", "--quiet", model, out, *flags)
    return out


# ---------------------------------------------------------------- safetensors

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


def read_safetensors(path):
    """Tensor name to (dtype, shape, stored bytes)."""
    data = Path(path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], data[end:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


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


def floats(dtype, data):
    """Stored elements as float32, rounded if they were float64."""
    array = np.frombuffer(data, NUMPY[dtype])
    if dtype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4")


def bf16(array):
    """Float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def weights_of(path, wide=False):
    """Every tensor of floating point as a flat array: float32, in which it is quantized, or float64 not rounded."""
    found = {}
    for name, (dtype, _, data) in read_safetensors(path).items():
        if dtype in ("F64", "F32", "F16", "BF16"):
            found[name] = np.frombuffer(data, "<f8") if wide and dtype == "F64" else floats(dtype, data)
    return found


# ---------------------------------------------------------------- quantized values


class Quantized:
    """A quantized value as stored, taken apart by its documentation."""

    def __init__(self, value):
        self.bits, self.scheme, self.group_size = value["bits"], value["scheme"], value["group_size"]
        self.length, self.row_length = value["length"], value["row_length"]
        # Codes are packed without gaps, the first in the lowest bits.
        stream = np.unpackbits(np.frombuffer(value["codes"], np.uint8), bitorder="little")
        codes = stream[: self.length * self.bits].reshape(self.length, self.bits)
        self.codes = codes @ (1 << np.arange(self.bits))
        # Groups end with rows: the last of each row may be short.
        index = np.arange(self.length)
        per_row = -(-self.row_length // self.group_size)
        self.group = index // self.row_length * per_row + index % self.row_length // self.group_size
        self.groups = self.length // self.row_length * per_row
        dtype = {"F16": "<f2", "F32": "<f4"}[value["parameter_dtype"]]
        self.scales = np.frombuffer(value["scales"], dtype).astype(np.float64)
        if self.scheme == "affine":
            self.offsets = np.frombuffer(value["minima"], dtype).astype(np.float64)
        elif self.scheme == "asymmetric":
            self.offsets = -self.scales * np.frombuffer(value["zero_points"], np.uint8)
        else:
            self.offsets = -self.scales * 2 ** (self.bits - 1)
        assert len(self.scales) == len(self.offsets) == self.groups
        assert (value["minima"] is not None) == (self.scheme == "affine")
        assert (value["zero_points"] is not None) == (self.scheme == "asymmetric")
        self.bytes = sum(len(value[key] or b"") for key in ("codes", "scales", "minima", "zero_points"))

    def restored(self):
        """The weights that the codes stand for."""
        return (self.scales[self.group] * self.codes + self.offsets[self.group]).astype(np.float32)

    def group_errors(self, weights):
        """The sum of squared errors of every group."""
        errors = weights.astype(np.float64) - self.restored()
        return np.bincount(self.group, errors * errors, self.groups)


class Stored:
    """A tensor of a quantized model, its chunks put together."""

    def __init__(self, rows):
        rows = sorted(rows, key=lambda row: row["chunk"])
        assert [row["chunk"] for row in rows] == list(range(len(rows)))
        self.values = [Quantized(row["quantized"]) for row in rows if row["quantized"]]
        self.kept = b"".join(row["weights"]["data"] for row in rows if row["weights"])
        assert not (self.values and self.kept)
        starts = np.cumsum([0] + [value.length for value in self.values])
        if self.values:
            assert [row["start"] for row in rows] == starts[:-1].tolist()
        self.bytes = sum(value.bytes for value in self.values) + len(self.kept)

    def restored(self):
        return np.concatenate([value.restored() for value in self.values])

    def group_errors(self, weights):
        pieces = np.split(weights, np.cumsum([value.length for value in self.values])[:-1])
        return np.concatenate([value.group_errors(piece) for value, piece in zip(self.values, pieces)])


def stored_tensors(directory):
    """Tensor name to what the Parquet files of a quantized model hold of it."""
    rows = {}
    for path in sorted((directory / "weights").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows.setdefault(row["tensor"], []).append(row)
    return {name: Stored(rows) for name, rows in rows.items()}


# ---------------------------------------------------------------- figures


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def sqnr(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 10 * np.log10((a @ a) / ((a - b) @ (a - b)))


def max_abs_error(a, b):
    return np.abs(a.astype(np.float64) - b).max()


def check_figures(found, weights, restored):
    """Reported figures against NumPy's."""
    assert found["cosine_similarity"] == pytest.approx(cosine(weights, restored), abs=AGREEMENT)
    assert found["sqnr_db"] == pytest.approx(sqnr(weights, restored), abs=AGREEMENT)
    assert found["max_abs_error"] == pytest.approx(max_abs_error(weights, restored), abs=AGREEMENT)


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory):
    """Rows that end within a group or within a byte of codes, every dtype, a convolution, tensors that are kept."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("odd") / "model.safetensors"
    write_safetensors(
        path,
        {
            "rows of 37": ("F32", random.standard_normal((5, 37))),
            "rows of 300": ("F16", random.standard_normal((6, 300))),
            "rows of 131": ("BF16", bf16(random.standard_normal((7, 131)))),
            "double": ("F64", random.standard_normal((4, 64))),
            "convolution": ("F32", random.standard_normal((16, 5, 3, 3))),
            "many chunks": ("BF16", bf16(0.02 * random.standard_t(5, (999, 511)))),
            "one-dimensional": ("F32", random.standard_normal(100)),
            "integers": ("I64", np.arange(60).reshape(2, 30)),
        },
    )
    return path


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, odd_model):
    """(example or odd, bits, group size, scheme, method) to a quantized model, each made once."""
    directory, made = tmp_path_factory.mktemp("quantized"), {}
    models = {"example": MODEL, "odd": odd_model}

    def output(name, *settings):
        key = (name, *settings)
        if key not in made:
            made[key] = quantize(models[name], directory / "-".join(map(str, key)), *settings)
        return made[key]

    return output


def original(name, odd_model):
    return odd_model if name == "odd" else MODEL / "model.safetensors"


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits, group, scheme", SETTINGS)
def test_sql_figures(outputs, bits, group, scheme, method):
    restored = f"dequantize(quantize(w.weights, {bits}, {group}, '{scheme}', '{method}'))"
    rows = sql(
        f"""SELECT tensor,
                   cosine_similarity_agg(w.weights, {restored}) AS cosine_similarity,
                   sqnr_agg(w.weights, {restored}) AS sqnr_db,
                   max_abs_error_agg(w.weights, {restored}) AS max_abs_error
            FROM weights('{MODEL}') w GROUP BY tensor"""
    )
    found = {row["tensor"]: row for row in rows}
    weights = weights_of(MODEL / "model.safetensors")
    stored = stored_tensors(outputs("example", bits, group, scheme, method))
    assert found.keys() == weights.keys() == stored.keys()
    compared = [name for name, tensor in stored.items() if tensor.values]
    assert len(compared) > 20
    for name in compared:
        check_figures(found[name], weights[name], stored[name].restored())


def test_sql_defaults_are_affine_and_mse():
    restored = "dequantize(quantize(weights, 4, 128{}))"
    figures = [
        sql(
            f"""SELECT tensor, cosine_similarity_agg(weights, {restored.format(more)}) AS cosine_similarity
                FROM weights('{MODEL}') GROUP BY tensor ORDER BY tensor"""
        )
        for more in ("", ", 'affine', 'mse'")
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
def test_sql_values_copied_to_parquet(tmp_path, bits, scheme):
    path = tmp_path / "quantized.parquet"
    sql(
        f"""COPY (SELECT tensor, chunk, start, quantize(weights, {bits}, 64, '{scheme}') AS quantized
                  FROM weights('{MODEL}'))
            TO '{path}' STORED AS PARQUET"""
    )
    rows = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["tensor"], []).append(row | {"weights": None})
    for name, weights in weights_of(MODEL / "model.safetensors").items():
        errors = np.array([list(row["quantized"]["errors"].values()) for row in rows[name]])
        tensor = Stored(rows[name])
        w, q = weights.astype(np.float64), tensor.restored().astype(np.float64)
        sums = [len(w), w @ w, q @ q, w @ q, (w - q) @ (w - q)]
        np.testing.assert_allclose(errors[:, :5].sum(axis=0), sums, rtol=AGREEMENT)
        assert errors[:, 5].max() == pytest.approx(max_abs_error(w, q), abs=AGREEMENT)


@pytest.mark.parametrize("name", ["example", "odd"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits, group, scheme", SETTINGS)
def test_manifest(outputs, odd_model, name, bits, group, scheme, method):
    directory = outputs(name, bits, group, scheme, method)
    manifest = json.loads((directory / "arrow_quant.json").read_text())
    settings = {"bit_width": bits, "group_size": group, "scheme": scheme, "method": method}
    assert settings.items() <= manifest["settings"].items()

    listed = {file["path"]: file for file in manifest["files"]}
    assert listed.keys() == {f"weights/{path.name}" for path in (directory / "weights").iterdir()}
    for path, file in listed.items():
        data = (directory / path).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())

    source, stored = read_safetensors(original(name, odd_model)), stored_tensors(directory)
    reports = {report["tensor"]: report for report in manifest["tensors"]}
    assert reports.keys() == source.keys() == stored.keys()
    for tensor, (dtype, shape, data) in source.items():
        report, found = reports[tensor], stored[tensor]
        elements = int(np.prod(shape))
        assert (report["dtype"], report["shape"], report["elements"]) == (dtype, shape, elements)
        assert report["bytes"] == found.bytes
        if found.kept:
            assert found.kept == data, tensor
            assert report["because"] and report["bits"] is None and report["sqnr_db"] is None
        else:
            assert report["because"] == "bit_width"
            assert (report["bits"], report["group_size"]) == (bits, group)
            check_figures(report, floats(dtype, data), found.restored())
    assert sum(report["bytes"] for report in reports.values()) <= sum(file["bytes"] for file in listed.values())


@pytest.mark.parametrize("bits", BITS)
def test_report_and_validation(tmp_path, bits):
    report = json.loads(run("quantize", "--json", MODEL, tmp_path / "out", "--bits", bits))
    weights = weights_of(MODEL / "model.safetensors")
    quantized = {name: found for name, found in stored_tensors(tmp_path / "out").items() if found.values}
    pooled = [np.concatenate(arrays) for arrays in zip(*[(weights[n], q.restored()) for n, q in quantized.items()])]
    assert report["cosine_similarity"] == pytest.approx(cosine(*pooled), abs=AGREEMENT)
    assert report["sqnr_db"] == pytest.approx(sqnr(*pooled), abs=AGREEMENT)
    files = sum(path.stat().st_size for path in (tmp_path / "out/weights").iterdir())
    elements = sum(map(len, weights.values()))
    assert (report["stored_bytes"], report["weights"]) == (files, elements)
    assert report["bits_per_weight"] == pytest.approx(8 * files / elements)

    validation = json.loads(run("validate", "--json", MODEL, tmp_path / "out"))
    assert len(validation["tensors"]) == len(weights)
    for row in validation["tensors"]:
        if row["tensor"] in quantized:
            check_figures(row, weights[row["tensor"]], quantized[row["tensor"]].restored())
        else:
            assert row["max_abs_error"] == 0
            assert row["cosine_similarity"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["example", "odd"])
@pytest.mark.parametrize("bits, group, scheme", SETTINGS)
def test_mse_is_no_worse_than_minmax_in_any_group(outputs, odd_model, name, bits, group, scheme):
    weights = weights_of(original(name, odd_model))
    minmax, mse = [stored_tensors(outputs(name, bits, group, scheme, method)) for method in METHODS]
    better = 0
    for tensor, found in mse.items():
        if found.values:
            searched = found.group_errors(weights[tensor])
            plain = minmax[tensor].group_errors(weights[tensor])
            # The command compares sums of float32.
            assert (searched <= plain * (1 + 1e-5)).all(), tensor
            better += (searched < 0.99 * plain).sum()
    assert better > 0


@pytest.mark.parametrize("bits, group, scheme", SETTINGS)
def test_codes_are_the_nearest(outputs, odd_model, bits, group, scheme):
    weights = weights_of(odd_model)
    for tensor, found in stored_tensors(outputs("odd", bits, group, scheme, "mse")).items():
        pieces = np.split(weights[tensor], np.cumsum([v.length for v in found.values])[:-1]) if found.values else []
        for value, piece in zip(found.values, pieces):
            scales, offsets = value.scales[value.group], value.offsets[value.group]
            position = (piece - offsets) / np.where(scales == 0, 1, scales)
            nearest = np.clip(np.rint(position), 0, 2**bits - 1)
            # Equal but for ties that rounding of the position decides.
            distance = np.abs(position - value.codes) - np.abs(position - nearest)
            assert (distance[scales != 0] < 1e-3).all(), tensor


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_bits_per_weight_on_disk(tmp_path, dtype):
    weights = 0.02 * np.random.default_rng(2).standard_normal((4096, 4096), dtype=np.float32)
    model = tmp_path / "large/model.safetensors"
    write_safetensors(model, {"large": (dtype, bf16(weights) if dtype == "BF16" else weights)})
    sizes = []
    for bits, group, limit in ((2, 64, 2.55), (4, 128, 4.30), (8, 64, 8.55)):
        out = quantize(model, tmp_path / str(bits), bits, group)
        files = [path for path in out.rglob("*") if path.is_file()]
        sizes.append(8 * sum(path.stat().st_size for path in files) / weights.size)
        assert bits < sizes[-1] <= limit
    assert sizes == sorted(sizes)


def test_tensor_stats(odd_model):
    for path in (MODEL / "model.safetensors", odd_model):
        weights = weights_of(path, wide=True)
        names = ", ".join(f"'{name}'" for name in weights)
        rows = sql(
            f"""SELECT tensor, tensor_stats_agg(weights) AS stats FROM weights('{path}')
                WHERE tensor IN ({names}) GROUP BY tensor"""
        )
        assert {row["tensor"] for row in rows} == weights.keys()
        for row in rows:
            w, stats = weights[row["tensor"]].astype(np.float64), row["stats"]
            assert (stats["n"], stats["nans"], stats["infinities"]) == (len(w), 0, 0)
            assert (stats["zeros"], stats["min"], stats["max"]) == ((w == 0).sum(), w.min(), w.max())
            for key, value in (("mean", w.mean()), ("std", w.std()), ("rms", np.sqrt(np.mean(w * w)))):
                assert stats[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (row["tensor"], key)


def test_tensor_stats_of_what_is_not_finite(tmp_path):
    values = np.random.default_rng(3).standard_normal((40, 50)).astype(np.float32)
    values[3, 7:10], values[20, :2], values[39, 49], values[5] = np.nan, np.inf, -np.inf, 0
    write_safetensors(tmp_path / "model.safetensors", {"t": ("F32", values)})
    [row] = sql(f"SELECT tensor_stats_agg(weights) AS stats FROM weights('{tmp_path}')")
    finite = values[np.isfinite(values)].astype(np.float64)
    expected = {"n": 2000, "nans": 3, "infinities": 3, "zeros": 50, "min": finite.min(), "max": finite.max()}
    assert expected.items() <= row["stats"].items()
    assert row["stats"]["mean"] == pytest.approx(finite.mean(), rel=1e-9)
    assert row["stats"]["std"] == pytest.approx(finite.std(), rel=1e-9)


def test_lists_in_a_parquet_file(tmp_path):
    random = np.random.default_rng(4)
    width, rows = 96, 50
    lengths = random.integers(1, 300, rows)
    a = [random.standard_normal(n).astype(np.float32) for n in lengths]
    b = [(x + 0.3 * random.standard_normal(len(x))).astype(np.float32) for x in a]
    c, d = random.standard_normal((2, rows, width)).astype(np.float32)

    def fixed(array, kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel(), kind), width)

    table = pa.table(
        {
            "row": pa.array(range(rows), pa.int64()),
            "a": pa.array(a, pa.list_(pa.float32())),
            "b": pa.array(b, pa.large_list(pa.float64())),
            "c": fixed(c, pa.float32()),
            "d": fixed(d.astype(np.float64), pa.float64()),
            "c_list": pa.array(list(c), pa.list_(pa.float64())),
            "missing": pa.array([None if i % 3 == 0 else x for i, x in enumerate(a)], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "lists.parquet", row_group_size=7)
    found = sql(
        f"""CREATE EXTERNAL TABLE lists STORED AS PARQUET LOCATION '{tmp_path / "lists.parquet"}';
            SELECT cosine_similarity(a, b) AS ab, cosine_similarity(c, d) AS cd, cosine_similarity(c_list, d) AS ld,
                   cosine_similarity(missing, b) AS missing
            FROM lists ORDER BY row"""
    )
    assert len(found) == rows
    for i, row in enumerate(found):
        assert row["ab"] == pytest.approx(cosine(a[i], b[i]), abs=1e-9)
        assert row["cd"] == pytest.approx(cosine(c[i], d[i]), abs=1e-9)
        assert row["ld"] == pytest.approx(cosine(c[i], d[i]), abs=1e-9)
        if i % 3 == 0:
            assert row.get("missing") is None
        else:
            assert row["missing"] == pytest.approx(cosine(a[i], b[i]), abs=1e-9)
