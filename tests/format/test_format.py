"""The stored format: directories of every version are restored exactly, by a reader that knows docs/format.md alone.

Golden directories are in tests/data/format; its README says how they were made. The environment's ARROW_QUANT is the
command, default target/debug/arrow-quant.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_directory import dequantize, read_directory, restore

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/data/format"
COMMAND = os.environ.get("ARROW_QUANT", str(ROOT / "target/debug/arrow-quant"))
DIRECTORIES = sorted(path.parent for path in GOLDEN.glob("v*/*/arrow_quant.json"))

specification = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make)


def check_equal(found, expected):
    """Arrays by name, with the shape, the dtype and every bit that are expected: name to (safetensors dtype, array)."""
    assert found.keys() == expected.keys()
    for name, (dtype, array) in expected.items():
        assert found[name].dtype == np.dtype(make.NUMPY[dtype]), name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def golden(version):
    return [path for path in DIRECTORIES if path.parent.name == version]


# ---------------------------------------------------------------- golden directories


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_golden_directories_are_there(version):
    assert [path.name for path in golden(version)] == sorted(make.DIRECTORIES[version])


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_directory_is_restored_exactly(directory):
    manifest = json.loads((directory / "arrow_quant.json").read_text())
    assert f"v{manifest['format_version']}" == directory.parent.name
    check_equal(read_directory(directory), make.read_safetensors(directory.with_suffix(".safetensors")))


def test_golden_directories_hold_every_case():
    for directory in DIRECTORIES:
        manifest = json.loads((directory / "arrow_quant.json").read_text())
        tensors = {tensor["tensor"]: tensor for tensor in manifest["tensors"]}
        assert {tensor["bits"] for tensor in tensors.values()} == {2, 4, 8, None}
        assert {"F64", "F32", "F16", "BF16", "I64", "BOOL"} == {tensor["dtype"] for tensor in tensors.values()}
        assert tensors["head.weight"]["same_as"] == "embed.weight"
        smoothed = [layer["tensor"] for layer in manifest["layers"] if layer["smoothing_alpha"] is not None]
        assert ("conv.weight" in smoothed) == directory.name.endswith("-smoothed")


def test_source_is_what_its_script_makes(tmp_path):
    make.write_safetensors(tmp_path / "model.safetensors", make.source_tensors())
    assert (tmp_path / "model.safetensors").read_bytes() == (make.SOURCE / "model.safetensors").read_bytes()


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_command_restores_golden_directory_exactly(directory):
    expected = make.read_safetensors(directory.with_suffix(".safetensors"))
    found = make.restored(COMMAND, directory)
    # A tensor without elements has no rows.
    assert found.keys() == {name for name, (_, array) in expected.items() if array.size}
    for name, (dtype, array) in found.items():
        assert (dtype, array.tobytes()) == (expected[name][0], expected[name][1].tobytes()), name


# ---------------------------------------------------------------- the reader


def test_reader_is_short():
    lines = (Path(__file__).parent / "read_directory.py").read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("version", [0, 4])
def test_reader_refuses_other_versions(tmp_path, version):
    copy = shutil.copytree(golden("v1")[0], tmp_path / "copy")
    manifest = json.loads((copy / "arrow_quant.json").read_text())
    (copy / "arrow_quant.json").write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(ValueError, match=f"format version {version} is not 1, 2 or 3"):
        read_directory(copy)


def edited(tmp_path, name, edit):
    """A copy of a golden directory of version 3 whose manifest was edited."""
    copy = shutil.copytree(GOLDEN / "v3" / name, tmp_path / "copy")
    manifest = json.loads((copy / "arrow_quant.json").read_text())
    edit(copy, manifest)
    (copy / "arrow_quant.json").write_text(json.dumps(manifest))
    return copy


def lose_tensor(name):
    """Makes an edit that takes a tensor's rows out of the files of weights."""

    def edit(copy, manifest):
        for file in manifest["files"]:
            table = pq.read_table(copy / file["path"])
            rows = [row for row in table.to_pylist() if row["tensor"] != name]
            pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / file["path"])
            file["bytes"] = (copy / file["path"]).stat().st_size

    return edit


def lose_smoothing(_, manifest):
    manifest["tables"] = [table for table in manifest["tables"] if table["path"] != "smoothing.parquet"]


def shorten_factors(copy, manifest):
    (entry,) = [table for table in manifest["tables"] if table["path"] == "smoothing.parquet"]
    table = pq.read_table(copy / entry["path"])
    short = pa.array([row[:1] for row in table["smooth"].to_pylist()], table.schema.field("smooth").type)
    pq.write_table(table.set_column(table.schema.get_field_index("smooth"), "smooth", short), copy / entry["path"])
    entry["bytes"] = (copy / entry["path"]).stat().st_size


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("affine-smoothed", lose_smoothing, "smoothing.parquet lacks"),
        ("affine-smoothed", shorten_factors, "reshape"),
        ("affine", lambda _, m: m["files"][0].update(path="../affine/weights/part-00000.parquet"), "is not a file of"),
        ("affine", lambda copy, m: m["files"][0].update(path=str(copy / m["files"][0]["path"])), "is not a file of"),
        ("affine", lambda _, m: m["files"][0].update(bytes=1), "is not a file of 1 bytes"),
        ("affine", lose_tensor("embed.weight"), "embed.weight: elements are missing"),
        ("affine", lambda _, m: next(t for t in m["tensors"] if t.get("same_as")).update(same_as="x"), "missing"),
    ],
)
def test_reader_refuses_damaged_directories(tmp_path, name, edit, message):
    with pytest.raises(ValueError, match=message):
        read_directory(edited(tmp_path, name, edit))


def test_reader_refuses_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_directory(edited(tmp_path, "affine", lambda copy, m: (copy / m["files"][0]["path"]).unlink()))


@pytest.mark.parametrize("start", [0, 10_000])
def test_reader_refuses_chunks_that_do_not_follow_each_other(start):
    value = quantized_value(np.arange(64), np.ones(64), np.zeros(64))
    tensor = {"tensor": "w", "bits": 8, "dtype": "F32", "shape": [2, 64], "elements": 128}
    with pytest.raises(ValueError, match="elements are missing"):
        restore(tensor, [{"start": 0, "quantized": value}, {"start": start, "quantized": value}], None)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scheme": "codebook"}, KeyError),
        ({"parameter_dtype": "BF16"}, KeyError),
        ({"parameter_dtype": "F16"}, ValueError),
        ({"encoding": "q4_k"}, KeyError),
        ({"encoding": "int4"}, ValueError),
        ({"encoding": "int5"}, ValueError),
        ({"bits": 7}, KeyError),
        ({"codes": b"\0" * 63}, ValueError),
        ({"codes": b"\0" * 65}, ValueError),
        ({"scales": b"\0" * 4 * 63}, ValueError),
        ({"minima": b"\0" * 4 * 65}, ValueError),
        ({"scheme": "asymmetric", "zero_points": b"\0" * 63}, ValueError),
        ({"scheme": "asymmetric", "zero_points": b"\4" * 64, "bits": 2, "codes": b"\0" * 16}, IndexError),
    ],
    ids=str,
)
def test_reader_refuses_values_that_it_does_not_know(change, error):
    value = quantized_value(np.arange(64), np.ones(64), np.zeros(64))
    dequantize(**value)
    with pytest.raises(error):
        dequantize(**value | change)


def quantized_value(codes, scale, minimum):
    """A quantized value of 8 bits with one weight a row, each with parameters of its own."""
    return {
        "bits": 8,
        "group_size": 32,
        "scheme": "affine",
        "method": "mse",
        "parameter_dtype": "F32",
        "length": len(codes),
        "row_length": 1,
        "codes": codes.astype("u1").tobytes(),
        "scales": scale.astype("<f4").tobytes(),
        "minima": minimum.astype("<f4").tobytes(),
        "zero_points": None,
    }


def nearest_f32(exact):
    """A fraction rounded once to f32, ties to even."""
    near = np.float32(float(exact))
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view("u4")) & 1))


def test_reader_rounds_once():
    random = np.random.default_rng(1)
    count = 4000
    codes = random.integers(0, 256, count)
    minimum = (random.standard_normal(count) * 2.0 ** random.integers(-30, 30, count)).astype("<f4")
    scale = (random.standard_normal(count) * 2.0 ** random.integers(-60, 30, count)).astype("<f4")
    # Products in the middle between two floats, and minima below the reach of f64 that say to which side the sum goes.
    codes[:100] = 3
    scale[:100] = 1 + random.integers(0, 1 << 21, 100) * 2.0**-22 + 2.0**-23
    scale[50:100] *= -1
    minimum[:100] = np.where(np.arange(100) % 2, 1, -1) * 2.0**-60
    found = dequantize(**quantized_value(codes, scale, minimum))
    exact = [Fraction(float(s)) * int(c) + Fraction(float(m)) for s, c, m in zip(scale, codes, minimum)]
    expected = np.array([nearest_f32(x) for x in exact], "<f4")
    twice = (scale.astype("f8") * codes + minimum).astype("<f4")
    assert found.tobytes() == expected.tobytes()
    assert twice.tobytes() != expected.tobytes(), "no value tells one rounding from two"


# ---------------------------------------------------------------- what the command writes today


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Two components; tensors of many chunks, a row that is cut, and one tensor in both components."""
    random = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("pipeline")
    shared = random.standard_normal((20, 80)).astype("<f4")
    components = {
        "unet": {
            "many chunks": ("BF16", make.bf16(0.02 * random.standard_t(5, (300, 511)))),
            "long row": ("F16", random.standard_normal((1, (1 << 20) + 100))),
            "shared": ("F32", shared),
            "bias": ("F32", random.standard_normal(70_000)),
        },
        "vae": {"decoder": ("F32", shared), "conv": ("F32", random.standard_normal((8, 4, 3, 3)))},
    }
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}
    (path / "model_index.json").write_text(json.dumps(index))
    shapes = {}
    for component, tensors in components.items():
        make.write_safetensors(path / component / "diffusion_pytorch_model.safetensors", tensors)
        shapes |= {f"{component}/{name}": array.shape for name, (_, array) in tensors.items()}
    return path, shapes


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("scheme", ["affine", "asymmetric", "symmetric"])
def test_reader_restores_what_the_command_does(tmp_path, pipeline, scheme, bits):
    source, shapes = pipeline
    group_size = {2: 128, 3: 16, 4: 128, 5: 32, 6: 16, 8: 256}[bits]
    flags = ["--type", f"int{bits}", "--group-size", str(group_size)]
    make.quantize(COMMAND, source, tmp_path / "out", scheme, "mse", *flags)
    manifest = json.loads((tmp_path / "out" / "arrow_quant.json").read_text())
    quantized = [tensor for tensor in manifest["tensors"] if tensor["bits"] is not None]
    assert {(tensor["encoding"], tensor["group_size"]) for tensor in quantized} == {(f"int{bits}", group_size)}
    expected = make.restored(COMMAND, tmp_path / "out")
    found = read_directory(tmp_path / "out")
    assert found["unet/shared"].tobytes() == found["vae/decoder"].tobytes()
    check_equal(found, {name: (dtype, array.reshape(shapes[name])) for name, (dtype, array) in expected.items()})


@pytest.mark.parametrize("scheme", ["affine", "asymmetric", "symmetric"])
def test_reader_restores_smoothed_weights_as_the_command_does(tmp_path, scheme):
    table = make.SOURCE / "calibration.parquet"
    make.quantize(COMMAND, make.SOURCE, tmp_path / "out", scheme, "mse", "--group-size", "32", "--calibration", table)
    found = read_directory(tmp_path / "out")
    nothing = {"nothing": ("F32", np.zeros(0, "<f4"))}  # has no rows, for it has no elements
    expected = make.restored(COMMAND, tmp_path / "out") | nothing
    check_equal(found, {name: (dtype, array.reshape(found[name].shape)) for name, (dtype, array) in expected.items()})


def test_command_refuses_other_versions(tmp_path):
    copy = shutil.copytree(golden("v1")[0], tmp_path / "copy")
    manifest = json.loads((copy / "arrow_quant.json").read_text())
    (copy / "arrow_quant.json").write_text(json.dumps(manifest | {"format_version": 4}))
    done = subprocess.run([COMMAND, "report", copy], capture_output=True, text=True)
    assert done.returncode != 0
    assert "format version 4" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_command_reads_reasons_that_it_does_not_know(tmp_path, command):
    def edit(_, manifest):
        manifest["tensors"][0] |= {"because": "rows of outliers", "reason": {"kind": "outlier_rows", "rows": [1]}}

    done = subprocess.run([COMMAND, command, edited(tmp_path, "affine", edit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
