"""Quantized models, restored: as SQL has them, as the documented formulas say, and kept tensors bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import gaussian, write_model

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    LazyTensor,
    MetadataError,
    ModelNotFoundError,
    QuantizationError,
    load_quantized,
    load_state_dict,
)

# Every dtype of safetensors whose elements are whole bytes: in NumPy, and in torch.
DTYPES = {
    "BOOL": (np.dtype(bool), "bool"),
    "U8": (np.dtype(np.uint8), "uint8"),
    "I8": (np.dtype(np.int8), "int8"),
    "U16": (np.dtype(np.uint16), "uint16"),
    "I16": (np.dtype(np.int16), "int16"),
    "U32": (np.dtype(np.uint32), "uint32"),
    "I32": (np.dtype(np.int32), "int32"),
    "U64": (np.dtype(np.uint64), "uint64"),
    "I64": (np.dtype(np.int64), "int64"),
    "F16": (np.dtype(np.float16), "float16"),
    "BF16": (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
    "F32": (np.dtype(np.float32), "float32"),
    "F64": (np.dtype(np.float64), "float64"),
    "C64": (np.dtype(np.complex64), "complex64"),
    "F8_E4M3": (np.dtype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
    "F8_E5M2": (np.dtype(ml_dtypes.float8_e5m2), "float8_e5m2"),
    "F8_E8M0": (np.dtype(ml_dtypes.float8_e8m0fnu), "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (np.dtype(ml_dtypes.float8_e4m3fnuz), "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (np.dtype(ml_dtypes.float8_e5m2fnuz), "float8_e5m2fnuz"),
}
QUANTIZED = {"q.F16": (300, 500), "q.BF16": (64, 256), "q.F32": (16, 8, 3, 3), "q.F64": (64, 256)}


class Stored(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def stored(dtype: str, array: np.ndarray) -> Stored:
    return Stored(dtype, array.shape, array.astype(DTYPES[dtype][0]).tobytes())


def kept_tensor(dtype: str) -> Stored:
    """A vector of every bit pattern of a byte, again and again; of booleans, of theirs."""
    data = bytes(range(2 if dtype == "BOOL" else 256)) * 8
    return Stored(dtype, (len(data) // DTYPES[dtype][0].itemsize,), data)


def write_safetensors(path: Path, tensors: dict[str, Stored]) -> None:
    """Writes a file byte by byte: safetensors' own functions do not know every dtype."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.data
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def quantized(model: Path, **fields: Any) -> Path:
    """A quantized copy of a model, beside it."""
    path = model.parent / f"{model.name}-quantized"
    config = DiffusionQuantConfig(min_accuracy=0.0, **fields)
    ArrowQuantV2("base").quantize_model(model, path, config)
    return path


@pytest.fixture(scope="module")
def original() -> dict[str, Stored]:
    """Tensors that are quantized, of every dtype and several shapes, and tensors that are kept, of every dtype."""
    tensors = {f"kept.{dtype}": kept_tensor(dtype) for dtype in DTYPES}
    tensors["kept.scalar"] = Stored("I64", (), (2**40).to_bytes(8, "little"))
    tensors["kept.empty"] = Stored("F32", (0, 7), b"")
    tensors["kept.matrix"] = stored("I32", np.arange(12).reshape(3, 4))
    for seed, (name, shape) in enumerate(QUANTIZED.items()):
        tensors[name] = stored(name.removeprefix("q."), gaussian(shape, seed=seed))
    # Scales that float16 cannot hold.
    tensors["q.tiny"] = stored("F32", 1e-9 * gaussian((64, 256), seed=9))
    tensors["q.embedding"] = tensors["q.output"] = stored("BF16", gaussian((96, 128), seed=10))
    return tensors


@pytest.fixture(scope="module", params=["affine", "asymmetric", "symmetric"])
def model(
    request: pytest.FixtureRequest, original: dict[str, Stored], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Those tensors, quantized."""
    path = tmp_path_factory.mktemp(request.param) / "model"
    write_safetensors(path / "model.safetensors", original)
    widths = {r"q\.F16": 8, r"q\.F64": 2}
    return quantized(path, scheme=request.param, group_size=64, layer_bit_widths=widths)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized pipeline of two components, which have a matrix in common."""
    path = tmp_path_factory.mktemp("pipeline") / "pipeline"
    shared = gaussian((64, 64), "float16", 1)
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps(index))
    for component, tensors in {
        "unet": {"own": gaussian((64, 64), "float16", 2), "w": shared, "b": gaussian((64,), "float16", 3)},
        "vae": {"again": shared, "w": shared, "b": gaussian((64,), "float16", 4)},
    }.items():
        file = path / component / "diffusion_pytorch_model.safetensors"
        write_safetensors(file, {name: stored("F16", array) for name, array in tensors.items()})
    return quantized(path)


def restored(value: dict[str, Any]) -> np.ndarray:
    """The weights of a quantized value, by its documentation."""
    # Codes are packed without gaps, the first in the lowest bits.
    stream = np.unpackbits(np.frombuffer(value["codes"], np.uint8), bitorder="little")
    bits, length = value["bits"], value["length"]
    codes = stream[: length * bits].reshape(length, bits) @ (1 << np.arange(bits))
    # Groups end where rows do: the last of each row may be short.
    at = np.arange(length)
    groups_of_a_row = -(-value["row_length"] // value["group_size"])
    group = at // value["row_length"] * groups_of_a_row + at % value["row_length"] // value["group_size"]
    parameters = {"F16": "<f2", "F32": "<f4"}[value["parameter_dtype"]]
    scales = np.frombuffer(value["scales"], parameters).astype(np.float64)
    offsets = {
        "affine": lambda: np.frombuffer(value["minima"], parameters).astype(np.float64),
        "asymmetric": lambda: -scales * np.frombuffer(value["zero_points"], np.uint8),
        "symmetric": lambda: -scales * 2 ** (bits - 1),
    }[value["scheme"]]()
    return (scales[group] * codes + offsets[group]).astype(np.float32)


def from_files(model: Path) -> dict[str, np.ndarray]:
    """The quantized tensors of a model as one dimension, from its Parquet files."""
    rows = [row for path in (model / "weights").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    chunks: dict[str, list[np.ndarray]] = {}
    for row in sorted(rows, key=lambda row: (row["tensor"], row["chunk"])):
        if row["quantized"] is not None:
            chunks.setdefault(row["tensor"], []).append(restored(row["quantized"]))
    return {name: np.concatenate(pieces) for name, pieces in chunks.items()}


def from_sql(model: Path) -> dict[str, np.ndarray]:
    """The same, as SQL restores them."""
    query = "SELECT component, tensor, dequantize(quantized) AS w FROM m.quantized ORDER BY component, tensor, start"
    chunks: dict[str, list[bytes]] = {}
    for row in pa.table(arrow_quant_v2.connect(models={"m": model}).sql(query)).to_pylist():
        name = "/".join(filter(None, [row["component"], row["tensor"]]))
        chunks.setdefault(name, []).append(row["w"]["data"])
    return {name: np.frombuffer(b"".join(pieces), np.float32) for name, pieces in chunks.items()}


# Mapping


def test_a_quantized_model_is_a_mapping(model: Path, original: dict[str, Stored]) -> None:
    loaded = load_quantized(str(model))
    assert set(loaded) == set(original) and len(loaded) == len(original)
    assert loaded.path == str(model) and loaded.components == ()
    assert "q.F16" in loaded and "q" not in loaded and 3 not in loaded
    assert loaded.get("q") is None and loaded.get("q.F16") is loaded["q.F16"]
    assert repr(loaded) == f"QuantizedModel({str(model)!r}, {len(original)} tensors)"


def test_tensors_tell_what_they_are(model: Path, original: dict[str, Stored]) -> None:
    loaded = load_quantized(model)
    for name, tensor in loaded.items():
        assert (tensor.name, tensor.dtype, tensor.shape) == (name, original[name].dtype, original[name].shape)
        assert (tensor.component, tensor.bits is None) == ("", name.startswith("kept."))
        assert (tensor.group_size is None) == (tensor.bits is None)
    found = {name: (loaded[name].bits, loaded[name].group_size) for name in ("q.F16", "q.F32", "q.F64")}
    assert found == {"q.F16": (8, 64), "q.F32": (4, 64), "q.F64": (2, 64)}
    assert repr(loaded["q.F16"]) == "LazyTensor('q.F16', F16 [300, 500], 8 bits in groups of 64)"
    assert repr(loaded["kept.I64"]) == "LazyTensor('kept.I64', I64 [256], kept)"
    assert {loaded["q.embedding"].same_as, loaded["q.output"].same_as} <= {None, "q.embedding", "q.output"}


def test_a_name_that_is_not_there(model: Path, pipeline: Path) -> None:
    with pytest.raises(KeyError, match=r"has no tensor 'q\.F17'; the nearest: q\.F1"):
        load_quantized(model)["q.F17"]
    with pytest.raises(KeyError, match=r"has no tensor 'own'; the nearest: unet/own"):
        load_quantized(pipeline)["own"]
    with pytest.raises(KeyError, match=r"has no tensor '\?'\""):
        load_quantized(model)["?"]


def test_what_is_no_quantized_model(tmp_path: Path, digits_dit: Path) -> None:
    for load in (load_quantized, load_state_dict):
        if load is load_state_dict:
            pytest.importorskip("torch")
        for path in (tmp_path / "nothing", tmp_path, digits_dit):
            with pytest.raises(ModelNotFoundError) as caught:
                load(path)
            assert caught.value.path == str(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = quantized(write_model(tmp_path / "m", {"w": gaussian((64, 64)), "v": gaussian((64, 64), seed=1)}))
    [file] = (path / "weights").iterdir()
    loaded = load_quantized(path)
    content = file.read_bytes()
    file.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    with pytest.raises(arrow_quant_v2.ArrowQuantError):
        loaded["w"].numpy()
    file.write_bytes(content[:-1])
    with pytest.raises(MetadataError) as caught:
        load_quantized(path)
    assert caught.value.path == str(file)


def test_a_part_that_was_changed_is_found_at_the_first_read(tmp_path: Path) -> None:
    path = quantized(write_model(tmp_path / "m", {"w": gaussian((64, 64)), "v": gaussian((64, 64), seed=1)}))
    [file] = (path / "weights").iterdir()
    content = bytearray(file.read_bytes())
    # Of codes, which hold any bits.
    for index in range(200, 300):
        content[index] ^= 0x10
    file.write_bytes(content)
    loaded = load_quantized(path)
    for _ in range(2):
        with pytest.raises(MetadataError) as caught:
            loaded["w"].numpy()
        assert caught.value.path == str(file)
    pytest.importorskip("torch")
    with pytest.raises(MetadataError) as caught:
        load_state_dict(path)
    assert caught.value.path == str(file)


@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        ([-64, -64], 4096),
        ([64, -64], -4096),
        ([64, 63], 4096),
        ([2**32, 2**32], 0),
        ([2**62, 2**62], 4096),
        ([2**40], 2**40),
        ([64, 64, 2**31], 2**43),
    ],
)
@pytest.mark.parametrize("tensor", ["kept", "w"])
def test_shapes_that_cannot_be(tensor: str, shape: list[int], elements: int, tmp_path: Path) -> None:
    original = {"kept": np.arange(4096).reshape(64, 64), "w": gaussian((64, 64))}
    path = quantized(write_model(tmp_path / "m", original))
    manifest = json.loads((path / "arrow_quant.json").read_text())
    [report] = [report for report in manifest["tensors"] if report["tensor"] == tensor]
    report.update(shape=shape, elements=elements)
    (path / "arrow_quant.json").write_text(json.dumps(manifest))
    with pytest.raises(MetadataError):
        load_quantized(path)[tensor].numpy()


@pytest.mark.parametrize("path", [3, None, ["model"], b"model"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="^path is .*, allowed: a path") as caught:
        load_quantized(path)
    assert caught.value.field == "path"
    pytest.importorskip("torch")
    with pytest.raises(ConfigurationError, match="^path is .*, allowed: a path") as caught:
        load_state_dict(path)
    assert caught.value.field == "path"


# NumPy


def test_kept_tensors_are_what_they_were(model: Path, original: dict[str, Stored]) -> None:
    for name, tensor in load_quantized(model).items():
        if tensor.bits is None:
            array = tensor.numpy()
            assert (array.dtype, array.shape) == (DTYPES[tensor.dtype][0], original[name].shape)
            assert array.tobytes() == original[name].data
            assert array.flags.writeable and array.flags.c_contiguous


def test_quantized_tensors_are_restored_as_documented(model: Path) -> None:
    expected = from_files(model)
    loaded = load_quantized(model)
    # Of the two that are the same, one is stored.
    assert {"q.embedding", "q.output"} & set(expected) and len(expected) == len(QUANTIZED) + 2
    for name, weights in expected.items():
        found = loaded[name].numpy("float32")
        assert (found.dtype, found.shape) == (np.float32, loaded[name].shape)
        np.testing.assert_allclose(found.reshape(-1), weights, rtol=1e-6, atol=1e-6 * np.abs(weights).max())


def test_quantized_tensors_are_those_of_sql(model: Path, pipeline: Path) -> None:
    for path in (model, pipeline):
        expected = from_sql(path)
        loaded = load_quantized(path)
        assert set(expected) == {name for name, tensor in loaded.items() if tensor.bits is not None}
        for name, weights in expected.items():
            np.testing.assert_array_equal(loaded[name].numpy(np.float32).reshape(-1), weights)


def test_quantized_tensors_are_near_the_original(model: Path, original: dict[str, Stored]) -> None:
    for name, tensor in load_quantized(model).items():
        if tensor.bits is not None:
            weights = np.frombuffer(original[name].data, DTYPES[tensor.dtype][0]).astype(np.float64)
            found = tensor.numpy("float64").reshape(-1)
            assert weights @ found / np.sqrt((weights @ weights) * (found @ found)) > 0.92


def test_the_dtype_is_the_original_one_or_the_one_asked_for(model: Path) -> None:
    for tensor in load_quantized(model).values():
        if tensor.bits is None:
            continue
        floats = tensor.numpy("float32")
        for asked in (None, np.float64, "float16", "bfloat16", ml_dtypes.bfloat16, np.dtype(">f4")):
            array = tensor.numpy(asked)
            dtype = DTYPES[tensor.dtype][0] if asked is None else np.dtype(asked)
            assert (array.dtype, array.shape) == (dtype, tensor.shape)
            np.testing.assert_array_equal(array, floats.astype(dtype))


def test_kept_tensors_in_another_dtype(model: Path, original: dict[str, Stored]) -> None:
    loaded = load_quantized(model)
    halves = np.frombuffer(original["kept.BF16"].data, ml_dtypes.bfloat16)
    for asked in (np.float32, "float64", "bfloat16"):
        array = loaded["kept.BF16"].numpy(asked)
        assert array.dtype == np.dtype("bfloat16" if asked == "bfloat16" else asked)
        # NumPy knows no NaN of bfloat16.
        np.testing.assert_array_equal(array.astype(np.float64), halves.astype(np.float64))
    np.testing.assert_array_equal(loaded["kept.I32"].numpy("int64"), loaded["kept.I32"].numpy().astype(np.int64))
    np.testing.assert_array_equal(loaded["kept.matrix"].numpy(np.float32), np.arange(12).reshape(3, 4))


def test_tensors_are_arrays_for_numpy(model: Path) -> None:
    tensor = load_quantized(model)["q.F64"]
    np.testing.assert_array_equal(np.asarray(tensor), tensor.numpy())
    assert np.asarray(tensor, np.float32).dtype == np.float32
    assert np.abs(tensor).max() == np.abs(tensor.numpy()).max()
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(tensor, copy=False)


@pytest.mark.parametrize("dtype", ["float33", "BF16", 3.5, object()], ids=repr)
def test_what_is_no_dtype(model: Path, dtype: object) -> None:
    with pytest.raises(ConfigurationError, match="^dtype is .*, allowed: what NumPy takes as a dtype") as caught:
        load_quantized(model)["q.F16"].numpy(dtype)
    assert caught.value.field == "dtype"


def test_without_ml_dtypes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_quantized(model)
    expected = {name: loaded[name].numpy("float32") for name in ("q.BF16", "kept.BF16", "kept.F16")}
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for name in ("q.BF16", "kept.BF16"):
        message = rf"^{name} is BF16, .*: run `pip install -U ml_dtypes` or ask for dtype=\"float32\"$"
        with pytest.raises(QuantizationError, match=message) as caught:
            loaded[name].numpy()
        assert caught.value.tensor == name
    with pytest.raises(QuantizationError, match=r"^kept\.F8_E5M2 is F8_E5M2, .*: run `pip install -U ml_dtypes`$"):
        loaded["kept.F8_E5M2"].numpy("float32")
    with pytest.raises(ConfigurationError, match="run `pip install -U ml_dtypes`") as caught:
        loaded["q.F16"].numpy("bfloat16")
    assert caught.value.field == "dtype"
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name].numpy("float32"), array)


def test_elements_that_share_bytes_have_no_dtype(tmp_path: Path) -> None:
    tensors = {"w": stored("F32", gaussian((64, 64))), "packed": Stored("F4", (4, 8), bytes(16))}
    write_safetensors(tmp_path / "m" / "model.safetensors", tensors)
    loaded = load_quantized(quantized(tmp_path / "m"))
    with pytest.raises(QuantizationError, match="^packed is F4, which NumPy has no dtype for$"):
        loaded["packed"].numpy()


def test_the_largest_float16_stays_finite(tmp_path: Path) -> None:
    weights = np.where(np.arange(64 * 64) % 3, 65504, -60001).reshape(64, 64).astype(np.float16)
    loaded = load_quantized(quantized(write_model(tmp_path / "m", {"w": weights}), scheme="asymmetric"))
    assert loaded["w"].numpy("float32").max() > 65504
    assert np.isfinite(loaded["w"].numpy()).all()
    torch = pytest.importorskip("torch")
    assert torch.isfinite(loaded["w"].torch()).all()


def test_the_example_model(quantized_digits: Path, digits_dit: Path) -> None:
    data = (digits_dit / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    loaded = load_quantized(quantized_digits)
    assert set(loaded) == set(header) - {"__metadata__"}
    kept = [tensor for tensor in loaded.values() if tensor.bits is None]
    assert kept
    for tensor in kept:
        begin, stop = header[tensor.name]["data_offsets"]
        assert tensor.numpy().tobytes() == data[end + begin : end + stop]


# Pipelines


def test_tensors_of_a_pipeline(pipeline: Path) -> None:
    loaded = load_quantized(pipeline)
    assert set(loaded) == {"unet/own", "unet/w", "unet/b", "vae/again", "vae/w", "vae/b"}
    assert loaded.components == ("unet", "vae")
    tensor = loaded["vae/w"]
    assert isinstance(tensor, LazyTensor)
    assert (tensor.name, tensor.component, tensor.bits, tensor.dtype) == ("vae/w", "vae", 4, "F16")
    np.testing.assert_array_equal(tensor.numpy(), loaded["unet/w"].numpy())
    assert not np.array_equal(loaded["vae/b"].numpy(), loaded["unet/b"].numpy())


def test_state_dicts_of_a_pipeline(pipeline: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = load_state_dict(pipeline)
    assert list(whole) == list(load_quantized(pipeline))
    assert whole["unet/w"] is whole["vae/w"] is whole["vae/again"]
    for component, names in {"unet": {"own", "w", "b"}, "vae": {"again", "w", "b"}}.items():
        part = load_state_dict(pipeline, component=component)
        assert set(part) == names
        assert all(torch.equal(tensor, whole[f"{component}/{name}"]) for name, tensor in part.items())
    # What is stored for another component is shared within this one.
    assert part["w"] is part["again"]


def test_components_that_are_not_there(pipeline: Path, model: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigurationError, match=r"^component is 'text', allowed: unet, vae$") as caught:
        load_state_dict(pipeline, component="text")
    assert (caught.value.field, caught.value.path) == ("component", str(pipeline))
    with pytest.raises(ConfigurationError, match=r"^component is 'unet', the model has none, leave it out$"):
        load_state_dict(model, component="unet")


# torch


def test_torch_tensors_of_every_dtype(model: Path, original: dict[str, Stored]) -> None:
    torch = pytest.importorskip("torch")
    for name, tensor in load_quantized(model).items():
        found = tensor.torch()
        assert (found.dtype, tuple(found.shape)) == (getattr(torch, DTYPES[tensor.dtype][1]), original[name].shape)
        assert found.device.type == "cpu" and found.is_contiguous() and not found.requires_grad
        data = found.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert data == tensor.numpy().tobytes()
        if tensor.bits is None:
            assert data == original[name].data


def test_torch_tensors_in_another_dtype(model: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = load_quantized(model)["q.BF16"]
    floats = torch.from_numpy(tensor.numpy("float32"))
    for asked in (torch.float64, "float32", "torch.float16", torch.bfloat16):
        found = tensor.torch(asked)
        assert str(found.dtype).removeprefix("torch.") == str(asked).removeprefix("torch.")
        assert torch.equal(found, floats.to(found.dtype))
    for asked in ("float33", "nn", np.float32, 3):
        with pytest.raises(ConfigurationError, match=r"^dtype is .*, allowed: a torch\.dtype or the name") as caught:
            tensor.torch(asked)
        assert caught.value.field == "dtype"


def test_state_dicts_have_the_original_dtypes(model: Path, original: dict[str, Stored]) -> None:
    torch = pytest.importorskip("torch")
    state = load_state_dict(model)
    loaded = load_quantized(model)
    assert list(state) == list(loaded)
    for name, tensor in state.items():
        assert tensor.dtype == getattr(torch, DTYPES[original[name].dtype][1])
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), loaded[name].torch().reshape(-1).view(torch.uint8))
    assert state["q.embedding"] is state["q.output"]


def test_state_dicts_of_one_dtype(model: Path) -> None:
    torch = pytest.importorskip("torch")
    before, after = load_state_dict(model), load_state_dict(model, dtype="bfloat16")
    assert list(before) == list(after)
    for name, tensor in after.items():
        was = before[name].dtype
        assert tensor.dtype == (torch.bfloat16 if was.is_floating_point else was)
    assert after["q.embedding"] is after["q.output"]
    for dtype in (torch.int8, "bool", "complex64"):
        with pytest.raises(ConfigurationError, match="^dtype is torch.*, allowed: one of floating point$") as caught:
            load_state_dict(model, dtype=dtype)
        assert caught.value.field == "dtype"


def test_a_module_loads_its_state(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 64))
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    path = quantized(write_model(tmp_path / "m", state), bit_width=8)
    inputs = torch.from_numpy(gaussian((8, 64)))
    before = module.eval()(inputs)
    module.load_state_dict(load_state_dict(path))
    assert 0 < (module(inputs) - before).abs().max() < 0.01
    module.to(torch.bfloat16).load_state_dict(load_state_dict(path, dtype=torch.bfloat16))


def test_without_torch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        load_state_dict(model)
    with pytest.raises(ImportError, match="pip install torch"):
        load_quantized(model)["q.F16"].torch()


# Memory

# Reads every tensor of a model, one after the other, and prints by how much memory grew after the first, in bytes.
READ_ALL = """
import resource, sys
from arrow_quant_v2 import load_quantized

tensors = list(load_quantized(sys.argv[1]).values())
for tensor in tensors[:2]:
    tensor.numpy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for tensor in tensors:
    tensor.numpy()
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts bytes elsewhere")
def test_memory_is_bounded_by_one_tensor(tmp_path: Path) -> None:
    one = gaussian((2048, 1024))
    model = write_model(tmp_path / "m", {f"w{i}": np.roll(one, i) for i in range(12)})
    path = quantized(model, method="minmax")
    done = subprocess.run([sys.executable, "-c", READ_ALL, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < one.nbytes
