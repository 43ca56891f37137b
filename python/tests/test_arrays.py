"""Arrays in memory: what is quantized comes back in the shape, dtype and kind it had, and Arrow data are not copied."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import gaussian

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowArray,
    ArrowQuantError,
    ArrowQuantV2,
    ConfigurationError,
    QuantizationError,
    QuantizedTensor,
    QuantizedTensors,
    ShapeMismatchError,
    _native,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": BFLOAT16}

# More than one chunk, and of the last row group a part only.
SHAPE = (300, 500)

quantizer = ArrowQuantV2()
quantize = quantizer.quantize
dequantize = quantizer.dequantize


def weights(dtype: Any = np.float32, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return gaussian(shape, seed=1).astype(dtype)


def elements(array: object) -> np.ndarray:
    """The elements of an Arrow array, of any nesting, as one dimension."""
    array = pa.chunked_array(array if hasattr(array, "__arrow_c_stream__") else [array])
    while pa.types.is_nested(array.type):
        array = pa.chunked_array([chunk.flatten() for chunk in array.chunks])
    return array.to_numpy()


def rows(quantized: object) -> list[dict[str, Any]]:
    return pa.table(quantized).to_pylist()


def is_restored(restored: np.ndarray, original: np.ndarray, quantized: QuantizedTensor) -> None:
    """Restored weights are off by what the quantized tensor says, and what rounding to the dtype adds."""
    error = np.abs(restored.astype(np.float64) - original.astype(np.float64)).max()
    rounding = np.abs(original.astype(np.float64)).max() * {"BF16": 2**-8, "F16": 2**-11}.get(quantized.dtype, 2**-24)
    assert error > 0
    assert error == pytest.approx(quantized.max_abs_error, abs=rounding)
    assert quantized.cosine_similarity > 0.99


# NumPy


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (1000,), (16, 8, 3, 3)], ids=str)
def test_numpy_arrays_of_every_dtype(name: str, shape: tuple[int, ...]) -> None:
    array = weights(DTYPES[name], shape)
    quantized = quantize(array)
    assert (quantized.name, quantized.dtype, quantized.shape) == ("weights", name, shape)
    assert (quantized.bit_width, quantized.group_size, quantized.scheme, quantized.method) == (4, 128, "affine", "mse")
    restored = dequantize(quantized)
    assert (type(restored), restored.dtype, restored.shape) == (np.ndarray, array.dtype, shape)
    is_restored(restored, array, quantized)


@pytest.mark.parametrize("bit_width", [2, 4, 8])
@pytest.mark.parametrize("scheme", ["affine", "asymmetric", "symmetric"])
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_arguments_are_those_of_quantize_in_sql(bit_width: int, scheme: str, method: str) -> None:
    array = weights(shape=(1000,))
    quantized = quantize(array, bit_width, 64, scheme, method)
    assert quantized.bits_per_weight == 8 * quantized.nbytes / 1000
    table = pa.table({"w": pa.array([array])})
    query = f"SELECT quantize(w, {bit_width}, 64, '{scheme}', '{method}') AS quantized FROM t"
    [expected] = rows(arrow_quant_v2.connect(tables={"t": table}).sql(query))
    [found] = rows(quantized)
    assert found["quantized"] == expected["quantized"]


def misaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"?" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": np.transpose,
    "every other": lambda array: array[::2, 1::3],
    "backwards": lambda array: array[::-1],
    "Fortran order": np.asfortranarray,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
    "misaligned": misaligned,
    "read-only": read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "subclass": lambda array: array.view(np.recarray),
    "one element": lambda array: array[:1, :1],
    "no dimension": lambda array: np.array(array[3, 4]),
    "scalar": lambda array: array[3, 4],
    "no element": lambda array: array[:, :0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays_of_every_layout(layout: str, dtype: type) -> None:
    array = LAYOUTS[layout](weights(dtype))
    plain = np.array(array, np.dtype(dtype), order="C", ndmin=0, subok=False)
    restored = dequantize(quantize(array))
    assert (restored.dtype, restored.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(restored, dequantize(quantize(plain)))


def test_bfloat16_in_the_other_byte_order() -> None:
    array = weights(BFLOAT16)
    swapped = array.view(np.uint16).byteswap().view(BFLOAT16.newbyteorder())
    restored = dequantize(quantize(swapped))
    assert restored.dtype == swapped.dtype
    assert rows(quantize(swapped)) == rows(quantize(array))


def test_a_file_that_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", weights())
    restored = dequantize(quantize(np.load(tmp_path / "w.npy", mmap_mode="r")))
    np.testing.assert_array_equal(restored, dequantize(quantize(weights())))


@pytest.mark.parametrize("make", [np.array, pa.array])
def test_the_largest_float16_stays_finite(make: Callable[[np.ndarray], Any]) -> None:
    array = np.where(np.arange(128) % 3, 65504, -60001).astype(np.float16)
    for bits in (2, 4, 8):
        for scheme in ("affine", "asymmetric", "symmetric"):
            assert np.isfinite(np.asarray(dequantize(quantize(make(array), bits, scheme=scheme)))).all()


def test_a_mapping_of_arrays(tmp_path: Path) -> None:
    arrays = {name: weights(dtype) for name, dtype in DTYPES.items()}
    quantized = quantize(arrays, bit_width=8, group_size=64)
    assert isinstance(quantized, QuantizedTensors)
    assert list(quantized) == list(quantized.keys()) == list(arrays)
    assert all(tensor.name == name and tensor.bit_width == 8 for name, tensor in quantized.items())
    restored = dequantize(quantized)
    assert {name: array.dtype for name, array in restored.items()} == {name: a.dtype for name, a in arrays.items()}
    for name, array in arrays.items():
        is_restored(restored[name], array, quantized[name])
    np.savez(tmp_path / "arrays.npz", w=arrays["F32"])
    np.testing.assert_array_equal(dequantize(quantize(np.load(tmp_path / "arrays.npz"), 8, 64))["w"], restored["F32"])
    some = dequantize({"a": quantized["F32"]})
    assert list(some) == ["a"]
    np.testing.assert_array_equal(some["a"], restored["F32"])


def test_totals() -> None:
    quantized = quantize({"a": weights(), "b": weights(np.float16, (1000,))})
    assert len(quantized) == 2 and "a" in quantized and "c" not in quantized and quantized.get("c") is None
    assert quantized.elements == 151_000
    assert quantized.nbytes == quantized["a"].nbytes + quantized["b"].nbytes
    assert quantized.bits_per_weight == 8 * quantized.nbytes / 151_000
    assert quantized.compression_ratio == (4 * 150_000 + 2 * 1000) / quantized.nbytes
    assert repr(quantized).startswith("QuantizedTensors(2 tensors, 0.08")
    with pytest.raises(KeyError):
        quantized["c"]
    none = quantize({})
    assert (len(none), none.nbytes, none.bits_per_weight, none.compression_ratio) == (0, 0, 0.0, 1.0)
    assert dequantize(none) == {} and rows(none) == []


# torch


def torch_tensor(dtype: str, shape: tuple[int, ...] = SHAPE) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(weights(shape=shape)).to(getattr(torch, dtype))


TORCH_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_torch_tensors_of_every_dtype(name: str) -> None:
    tensor = torch_tensor(TORCH_DTYPES[name])
    quantized = quantize(tensor)
    assert (quantized.dtype, quantized.shape) == (name, SHAPE)
    restored = dequantize(quantized)
    assert (restored.dtype, restored.shape, restored.device.type) == (tensor.dtype, tensor.shape, "cpu")
    assert rows(quantized) == rows(quantize(weights(DTYPES[name])))
    np.testing.assert_array_equal(restored.float().numpy(), dequantize(quantize(weights(DTYPES[name]))).astype("f4"))


TORCH_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda tensor: tensor.T,
    "every other": lambda tensor: tensor[::2, 1::3],
    "expanded": lambda tensor: tensor[:1].expand(7, -1),
    "requires_grad": lambda tensor: tensor.clone().requires_grad_(),
    "dimensions in another order": lambda tensor: tensor.reshape(3, 100, 20, 25).permute(0, 2, 3, 1),
    "negated view": lambda tensor: (1j * tensor.float()).conj().imag,
    "no dimension": lambda tensor: tensor[3, 4],
    "no element": lambda tensor: tensor[:, :0],
}


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_tensors_of_every_layout(layout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = TORCH_LAYOUTS[layout](torch_tensor(dtype))
    restored = dequantize(quantize(tensor))
    assert (restored.dtype, restored.shape, restored.requires_grad) == (tensor.dtype, tensor.shape, False)
    plain = tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
    assert torch.equal(restored, dequantize(quantize(plain)))


def test_a_torch_state_dict() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.LayerNorm(64)).to(torch.bfloat16)
    quantized = quantize(module.state_dict(), bit_width=8)
    assert list(quantized) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    module.load_state_dict(dequantize(quantized))


def test_torch_tensors_without_elements_to_read_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for tensor, what in [
        (torch.empty(3, device="meta"), "w is on the device meta, allowed: dense tensors that hold data"),
        (torch.eye(3).to_sparse(), "w is of the layout torch.sparse_coo, allowed: dense tensors that hold data"),
        (torch.zeros(3, dtype=torch.complex64), "w is of torch.complex64, allowed: float32, bfloat16, float16, float64"),
    ]:
        with pytest.raises(QuantizationError, match=f"^{what}") as caught:
            quantize({"w": tensor})
        assert caught.value.tensor == "w"


# Arrow


def nested(lists: Callable[[Any, int], Any], *lengths: int) -> Callable[[Any], Any]:
    """The type of lists of lists, of these lengths, of a type of floats."""

    def of(leaf: Any) -> Any:
        for length in reversed(lengths):
            leaf = lists(leaf, length)
        return leaf

    return of


ARROW_TYPES: dict[str, Callable[[Any], Any]] = {
    "floats": nested(pa.list_),
    "list": nested(lambda item, length: pa.list_(item), 50),
    "large list": nested(lambda item, length: pa.large_list(item), 50),
    "fixed-size list": nested(pa.list_, 50),
    "list of lists": nested(lambda item, length: pa.list_(item), 5, 10),
    "large list of large lists": nested(lambda item, length: pa.large_list(item), 5, 10),
    "fixed-size list of lists": lambda leaf: pa.list_(pa.list_(leaf), 5),
    "list of fixed-size lists": lambda leaf: pa.list_(pa.list_(leaf, 10)),
}


def arrow_array(arrow_type: Any, length: int = 40) -> Any:
    """An array of a type whose lists are of the lengths above."""
    lengths = []
    if pa.types.is_nested(arrow_type):
        lengths = [5, 10] if pa.types.is_nested(arrow_type.value_type) else [50]
    return of_lists(arrow_type, lengths, length)


def of_lists(arrow_type: Any, lengths: list[int], length: int) -> Any:
    if not lengths:
        return pa.array(weights(f"float{arrow_type.bit_width}", (length,)))
    values = of_lists(arrow_type.value_type, lengths[1:], length * lengths[0])
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.FixedSizeListArray.from_arrays(values, lengths[0])
    lists = pa.LargeListArray if pa.types.is_large_list(arrow_type) else pa.ListArray
    return lists.from_arrays(range(0, len(values) + 1, lengths[0]), values)


LEAVES = [pa.float16(), pa.float32(), pa.float64()]


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
@pytest.mark.parametrize("kind", ARROW_TYPES)
def test_pyarrow_arrays_of_every_type(kind: str, leaf: Any) -> None:
    array = arrow_array(ARROW_TYPES[kind](leaf))
    array.validate(full=True)
    quantized = quantize(array, bit_width=8)
    assert quantized.is_arrow and quantized.dtype == {"halffloat": "F16", "float": "F32", "double": "F64"}[str(leaf)]
    assert quantized.shape[0] == 40
    restored = dequantize(quantized)
    restored.validate(full=True)
    assert type(restored) is type(array) and restored.type == array.type and len(restored) == 40
    is_restored(elements(restored), elements(array), quantized)
    # As the same weights in NumPy.
    plain = elements(array).reshape(quantized.shape)
    assert rows(quantize(plain, bit_width=8)) == rows(quantized)
    np.testing.assert_array_equal(dequantize(quantize(plain, bit_width=8)).reshape(-1), elements(restored))


@pytest.mark.parametrize("kind", ARROW_TYPES)
def test_slices_of_pyarrow_arrays(kind: str) -> None:
    array = arrow_array(ARROW_TYPES[kind](pa.float32()))[3:17]
    restored = dequantize(quantize(array))
    assert restored.type == array.type and len(restored) == 14
    plain = elements(array).reshape(quantize(array).shape)
    np.testing.assert_array_equal(elements(restored), dequantize(quantize(plain)).reshape(-1))


@pytest.mark.parametrize("kind", ARROW_TYPES)
def test_pyarrow_arrays_in_chunks(kind: str) -> None:
    array = arrow_array(ARROW_TYPES[kind](pa.float32()))
    chunked = pa.chunked_array([array[:1], array[1:7], array[7:7], array[7:]])
    quantized = quantize(chunked)
    assert rows(quantized) == rows(quantize(array))
    restored = dequantize(quantized)
    assert isinstance(restored, pa.ChunkedArray) and restored.type == chunked.type
    np.testing.assert_array_equal(elements(restored), elements(dequantize(quantize(array))))


def test_an_empty_pyarrow_array() -> None:
    for array in (pa.array([], pa.float32()), pa.chunked_array([], pa.large_list(pa.float32()))):
        restored = dequantize(quantize(array))
        assert type(restored) is type(array) and restored.type == array.type and len(restored) == 0


def test_a_pyarrow_tensor_array() -> None:
    storage = arrow_array(pa.list_(pa.float32(), 50))
    array = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [5, 10]), storage)
    restored = dequantize(quantize(array))
    assert restored.type == array.type
    assert restored.storage.equals(dequantize(quantize(storage)))


def arrow_table() -> Any:
    """A table of two chunks, with metadata."""
    batches = [
        pa.record_batch({"vector": array, "matrix": matrix})
        for array, matrix in [
            (pa.array(weights()[0]), pa.array(list(weights(shape=(500, 30))), pa.large_list(pa.float32()))),
            (pa.array(weights()[1][:3]), pa.array(list(weights(shape=(3, 30))), pa.large_list(pa.float32()))),
        ]
    ]
    return pa.Table.from_batches(batches).replace_schema_metadata({"made": "here"})


def test_a_pyarrow_table() -> None:
    table = arrow_table()
    quantized = quantize(table)
    assert isinstance(quantized, QuantizedTensors)
    assert {name: tensor.shape for name, tensor in quantized.items()} == {"vector": (503,), "matrix": (503, 30)}
    restored = dequantize(quantized)
    assert isinstance(restored, pa.Table) and restored.schema.equals(table.schema, check_metadata=True)
    for name, tensor in quantized.items():
        is_restored(elements(restored[name]), elements(table[name]), tensor)
        assert dequantize(tensor).equals(restored[name])
    batch = table.to_batches()[0]
    restored = dequantize(quantize(batch))
    assert isinstance(restored, pa.RecordBatch) and restored.schema.equals(batch.schema, check_metadata=True)


POLARS_TYPES = {
    "Float32": (pl.Float32, (500,)),
    "Float64": (pl.Float64, (500,)),
    "List": (pl.List(pl.Float32), (20, 25)),
    "Array": (pl.Array(pl.Float64, 25), (20, 25)),
    "Array of Arrays": (pl.Array(pl.Float32, (5, 5)), (20, 5, 5)),
}


@pytest.mark.parametrize("kind", POLARS_TYPES)
def test_polars_series(kind: str) -> None:
    dtype, shape = POLARS_TYPES[kind]
    series = pl.Series("w", weights(shape=shape).tolist(), dtype=dtype)
    quantized = quantize(series)
    assert (quantized.name, quantized.shape) == ("w", shape)
    restored = dequantize(quantized)
    assert isinstance(restored, pl.Series) and (restored.name, restored.dtype) == ("w", dtype)
    is_restored(elements(restored), elements(series), quantized)
    # Sliced, and in several chunks.
    parts = pl.concat([series[:3], series[3:7], series[7:]], rechunk=False)
    assert dequantize(quantize(parts)).equals(restored)
    assert quantize(series[5:]).shape == (shape[0] - 5, *shape[1:])
    assert quantize({"renamed": series})["renamed"].name == "renamed"
    assert dequantize(quantize({"renamed": series}))["renamed"].equals(restored, check_names=True)


def test_a_polars_series_without_a_name() -> None:
    assert quantize(pl.Series(weights()[0])).name == "weights"


def test_a_polars_frame() -> None:
    frame = pl.DataFrame({"a": weights()[0], "b": weights(np.float64, (500, 4))})
    quantized = quantize(frame)
    assert {name: tensor.shape for name, tensor in quantized.items()} == {"a": (500,), "b": (500, 4)}
    restored = dequantize(quantized)
    assert isinstance(restored, pl.DataFrame) and restored.schema == frame.schema
    is_restored(elements(restored["b"]), elements(frame["b"]), quantized["b"])


def test_other_arrow_objects() -> None:
    arro3 = pytest.importorskip("arro3.core")
    array = pa.array(weights()[0])
    restored = dequantize(quantize(arro3.Array(array)))
    assert isinstance(restored, ArrowArray) and len(restored) == 500
    assert pa.array(restored).equals(dequantize(quantize(array)))
    table = arrow_table()
    columns = dequantize(quantize(arro3.Table(table)))
    assert [type(column) for column in columns.values()] == [ArrowArray, ArrowArray]
    assert pa.table({name: pa.chunked_array(column) for name, column in columns.items()}).equals(
        dequantize(quantize(table)).replace_schema_metadata()
    )


def test_streams_are_read_once() -> None:
    table = arrow_table()
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    assert rows(quantize(reader)) == rows(quantize(table))


def test_the_result_of_a_query() -> None:
    connection = arrow_quant_v2.connect(tables={"t": arrow_table()})
    quantized = quantize(connection.sql("SELECT matrix AS m FROM t"))
    assert quantized["m"].shape == (503, 30)


def test_kinds_may_be_mixed() -> None:
    arrays = {"numpy": weights(), "pyarrow": pa.array(weights()[0]), "polars": pl.Series(weights()[0])}
    restored = dequantize(quantize(OrderedDict(arrays)))
    assert {name: type(array) for name, array in restored.items()} == {n: type(array) for n, array in arrays.items()}


# Copies


def addresses(table: object, column: str) -> list[int]:
    """Where the buffers of a column are, its structs' included."""
    found = []
    for chunk in pa.table(table)[column].chunks:
        fields = [chunk.field(i) for i in range(chunk.type.num_fields)] if pa.types.is_struct(chunk.type) else [chunk]
        found += [
            buffer.address for field in fields for buffer in field.buffers() if buffer is not None and buffer.size
        ]
    return found


def test_arrow_input_is_not_copied() -> None:
    table = arrow_table()
    columns = dict(_native.columns(_native.import_arrow(table)))
    assert list(columns) == ["vector", "matrix"]
    assert addresses(pa.table({"vector": pa.chunked_array(columns["vector"])}), "vector") == addresses(table, "vector")
    found = pa.chunked_array(columns["matrix"]).chunks
    for chunk, original in zip(found, table["matrix"].chunks, strict=True):
        assert chunk.values.buffers()[1].address == original.values.buffers()[1].address
    # An array, and one that starts within its buffer.
    for array in (pa.array(weights()[0]), pa.array(weights()[0])[7:]):
        once = pa.array(_native.import_arrow(array))
        assert once.offset * 4 + once.buffers()[1].address == array.offset * 4 + array.buffers()[1].address


def test_arrow_output_is_not_copied() -> None:
    quantized = quantize({"a": weights(), "b": weights(shape=(1000,))})
    first, second = pa.table(quantized), pa.table(quantized)
    assert addresses(first, "quantized") == addresses(second, "quantized")
    alone = pa.table(quantized["a"])
    assert set(addresses(alone, "quantized")) <= set(addresses(first, "quantized"))


def test_restored_arrow_data_are_not_copied() -> None:
    restored = quantize(pa.array(weights()[0])).dequantize_arrow()
    assert pa.array(restored).buffers()[1].address == pa.array(restored).buffers()[1].address
    series = pl.Series(restored)
    assert series.to_arrow().buffers()[1].address == pa.array(restored).buffers()[1].address


def test_contiguous_numpy_arrays_are_not_copied() -> None:
    array = weights(shape=(1024, 1024))
    quantize(array[:1])
    tracemalloc.start()
    quantize(array)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_the_overhead_of_a_call_is_small() -> None:
    array = weights(shape=(64,))
    best = min(timed(lambda: quantize(array, method="minmax")) for _ in range(200))
    # A loose bound: benches/python_calls.py measures it.
    assert best < 1e-3


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# Rows


def test_rows_describe_themselves() -> None:
    array = weights()
    table = pa.table(quantize({"w": array}, bit_width=2, group_size=64))
    assert table.column_names == ["tensor", "dtype", "shape", "chunk", "start", "quantized"]
    found = table.to_pylist()
    assert [row["chunk"] for row in found] == list(range(len(found))) and len(found) > 1
    assert [row["start"] for row in found] == list(np.cumsum([0] + [row["quantized"]["length"] for row in found])[:-1])
    assert {(row["tensor"], row["dtype"], tuple(row["shape"])) for row in found} == {("w", "F32", SHAPE)}
    # What a job stores for a model's tensor of this shape.
    assert {row["quantized"]["bits"] for row in found} == {2}
    assert {row["quantized"]["row_length"] for row in found} == {500}


def through_parquet(quantized: QuantizedTensors, path: Path) -> object:
    pq.write_table(pa.table(quantized), path / "q.parquet")
    return pq.read_table(path / "q.parquet")


def through_ipc(quantized: QuantizedTensors, path: Path) -> object:
    with pa.OSFile(str(path / "q.arrow"), "wb") as file, pa.ipc.new_file(file, pa.table(quantized).schema) as writer:
        writer.write_table(pa.table(quantized))
    return pa.ipc.open_file(path / "q.arrow").read_all()


def through_slices(quantized: QuantizedTensors, path: Path) -> object:
    table = pa.table(quantized)
    return pa.concat_tables([table[start : start + 2] for start in range(0, len(table), 2)])


def through_polars(quantized: QuantizedTensors, path: Path) -> object:
    return pl.DataFrame(quantized)


def through_sql(quantized: QuantizedTensors, path: Path) -> object:
    # The rows of a tensor may come in any order.
    return arrow_quant_v2.connect(tables={"q": quantized}).sql("SELECT * FROM q ORDER BY start DESC, tensor")


@pytest.mark.parametrize("trip", [through_parquet, through_ipc, through_slices, through_polars, through_sql])
def test_rows_that_went_elsewhere_are_restored_as_numpy_arrays(
    trip: Callable[[QuantizedTensors, Path], object], tmp_path: Path
) -> None:
    arrays = {name: weights(dtype) for name, dtype in DTYPES.items()} | {"scalar": np.float32(3)}
    quantized = quantize(arrays)
    expected = dequantize(quantized)
    restored = dequantize(trip(quantized, tmp_path))
    assert restored.keys() == expected.keys()
    for name, array in expected.items():
        assert (restored[name].dtype, restored[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(restored[name], array)


def test_sql_reads_quantized_tensors() -> None:
    quantized = quantize({"w": weights()})
    connection = arrow_quant_v2.connect(tables={"q": quantized})
    [row] = rows(connection.sql("SELECT tensor, cosine_similarity_agg(quantized) AS cosine FROM q GROUP BY tensor"))
    assert row == {"tensor": "w", "cosine": pytest.approx(quantized["w"].cosine_similarity, abs=1e-12)}
    restored = rows(connection.sql("SELECT dequantize(quantized) AS w FROM q ORDER BY start"))
    data = b"".join(row["w"]["data"] for row in restored)
    np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(SHAPE), dequantize(quantized)["w"])


def test_bfloat16_rows_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(quantize({"w": weights(BFLOAT16)}))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(QuantizationError, match="^w is BF16, .* run `pip install -U ml_dtypes`") as caught:
        dequantize(table)
    assert caught.value.tensor == "w"


# Errors

REFUSED = {
    "complex numbers": np.zeros(3, np.complex64),
    "text": np.array(["a"]),
    "objects": np.array([None]),
    "float8": np.zeros(3, ml_dtypes.float8_e4m3fn),
    "masked": np.ma.array([1.0, 2.0], mask=[True, False]),
    "NaN": np.array([1, np.nan], np.float32),
    "infinite": np.array([1, -np.inf], np.float16),
    "Arrow integers": pa.array([1, 2]),
    "Arrow text": pa.array(["a"]),
    "Arrow NaN": pa.array([1, float("nan")]),
    "polars integers": pl.Series("unnamed", [1, 2]),
    "table": pa.table({"a": [1.0]}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_arrays_that_cannot_be_quantized_are_named(kind: str) -> None:
    with pytest.raises(QuantizationError, match=r"^proj\.weight") as caught:
        quantize({"fine": weights(), "proj.weight": REFUSED[kind]})
    assert caught.value.tensor == "proj.weight"


def test_integers_are_told_what_is_allowed() -> None:
    allowed = "float32, bfloat16, float16, float64"
    with pytest.raises(QuantizationError, match=f"^weights is of int64, allowed: {allowed}; convert it, or leave it out$"):
        quantize(np.arange(3))


def test_integers_of_a_mapping_are_kept() -> None:
    buffers = {"step": np.arange(3), "flag": np.array(True), "count": np.int64(7), "empty": np.zeros(0, np.uint8)}
    quantized = quantize({"a": weights(), **buffers, "b": weights()}, bit_width=8)
    assert list(quantized) == ["a", *buffers, "b"]
    assert quantized.kept == tuple(buffers)
    assert all(quantized[name] is value for name, value in buffers.items())
    assert quantized.elements == 2 * weights().size
    assert repr(quantized).startswith("QuantizedTensors(2 tensors, 4 kept, ")
    restored = dequantize(quantized)
    assert list(restored) == list(quantized)
    assert all(restored[name] is value for name, value in buffers.items())
    assert dequantize(dict(quantized.items()))["step"] is buffers["step"]
    # A table has no place for them.
    assert pa.table(quantized)["tensor"].to_pylist().count("step") == 0


def test_buffers_of_a_module_are_kept() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    quantized = quantize(module.state_dict(), bit_width=8)
    assert quantized.kept == ("1.num_batches_tracked",)
    module.load_state_dict(dequantize(quantized))


def test_a_mapping_of_integers_alone_is_kept() -> None:
    quantized = quantize({"step": np.arange(3)})
    assert (len(quantized), quantized.kept, quantized.nbytes) == (1, ("step",), 0)


def test_a_notebook_shows_names_as_text() -> None:
    html = quantize({"<script>alert(1)</script>": weights()})._repr_html_()
    assert "&lt;script&gt;" in html and "<script" not in html


def test_what_is_no_tensor_has_no_rows_of_one_length() -> None:
    with pytest.raises(ShapeMismatchError, match="w has a NULL at 1") as caught:
        quantize({"w": pa.array([1.0, None])})
    assert caught.value.tensor == "w"
    with pytest.raises(ShapeMismatchError, match="w: the list at 2 has 1 elements, those before it 2"):
        quantize(pa.table({"w": [[1.0, 2.0], [3.0, 4.0], [5.0]]}))


@pytest.mark.parametrize("weights", [3, "w", [1.0, 2.0], None, {"w": [1.0]}, {"w": {"v": np.ones(3)}}, {1: np.ones(3)}])
def test_what_is_no_array_is_refused(weights: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed: (NumPy arrays, torch tensors|names that are)") as caught:
        quantize(weights)
    assert caught.value.field == "weights"


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two columns 'a'"):
        quantize(pa.table([[1.0], [2.0]], names=["a", "a"]))


@pytest.mark.parametrize(
    ("field", "value"), [("bit_width", 7), ("group_size", 100), ("scheme", "none"), ("method", "best")]
)
def test_arguments_that_are_not_allowed(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed: ") as caught:
        quantize(weights(), **{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("quantized", [3, None, np.ones(3), pa.array([1.0]), {"w": np.ones(3)}, []], ids=repr)
def test_what_is_not_quantized_cannot_be_restored(quantized: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed: what quantize returns") as caught:
        dequantize(quantized)
    assert caught.value.field == "quantized"


def test_tables_of_something_else_cannot_be_restored() -> None:
    with pytest.raises(ShapeMismatchError, match="no column"):
        dequantize(pa.table({"a": [1.0]}))
    table = pa.table(quantize({"w": weights()}))
    with pytest.raises(ShapeMismatchError, match="w: ") as caught:
        dequantize(table[1:])
    assert caught.value.tensor == "w"


# Rows that somebody changed


def changed(column: str, change: Callable[[Any], Any]) -> pa.Table:
    """The rows of a quantized tensor w, with another column."""
    table = pa.table(quantize({"w": weights()})).combine_chunks()
    index = table.column_names.index(column)
    return table.set_column(index, column, change(table[column].combine_chunks()))


def with_fields(values: pa.StructArray, change: Callable[[str, Any], Any]) -> pa.StructArray:
    """Quantized values with other fields, and without those of which `change` makes None."""
    fields = {field.name: change(field.name, values.field(field.name)) for field in values.type}
    kept = {name: array for name, array in fields.items() if array is not None}
    return pa.StructArray.from_arrays(list(kept.values()), list(kept))


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [2**62, 2**62], [-300, -500], [-300, 500], [300, 500, 2], [2**63 - 1], []], ids=repr
)
def test_rows_of_a_shape_that_cannot_be(shape: list[int]) -> None:
    table = changed("shape", lambda shapes: pa.array([shape] * len(shapes), shapes.type))
    with pytest.raises(ShapeMismatchError, match="w") as caught:
        dequantize(table)
    assert caught.value.tensor == "w"


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()], ids=str)
def test_rows_of_other_types_of_binary(binary: Any) -> None:
    original = quantize({"w": weights()})

    def cast(name: str, array: Any) -> Any:
        return array.cast(binary) if array.type == pa.binary_view() else array

    table = changed("quantized", lambda values: with_fields(values, cast))
    assert pa.types.is_binary(table["quantized"].type.field("codes").type) or binary == pa.large_binary()
    np.testing.assert_array_equal(dequantize(table)["w"], dequantize(original)["w"])
    [again] = _native.from_quantized_rows(table)
    assert (again.nbytes, again.bits_per_weight) == (original["w"].nbytes, original["w"].bits_per_weight)
    assert repr(again).startswith("QuantizedTensor(")


def without_codes(values: Any) -> Any:
    return with_fields(values, lambda name, array: None if name == "codes" else array)


def with_codes_that_are_null(values: Any) -> Any:
    def change(name: str, array: Any) -> Any:
        return pa.array([None, *array.to_pylist()[1:]], array.type) if name == "codes" else array

    return with_fields(values, change)


def with_codes_that_are_short(values: Any) -> Any:
    def change(name: str, array: Any) -> Any:
        return pa.array([codes[:-1] for codes in array.to_pylist()], array.type) if name == "codes" else array

    return with_fields(values, change)


def with_lengths_below_zero(values: Any) -> Any:
    def change(name: str, array: Any) -> Any:
        return pa.array([-length for length in array.to_pylist()], array.type) if name == "length" else array

    return with_fields(values, change)


@pytest.mark.parametrize(
    "change",
    [
        without_codes,
        with_codes_that_are_null,
        with_codes_that_are_short,
        with_lengths_below_zero,
    ],
)
def test_rows_without_what_is_needed_are_named(change: Callable[[Any], Any]) -> None:
    with pytest.raises(ArrowQuantError, match="w") as caught:
        dequantize(changed("quantized", change))
    assert caught.value.tensor == "w"


def test_rows_without_values_are_refused() -> None:
    table = changed("quantized", lambda values: pa.array([None] * len(values), values.type))
    with pytest.raises(ArrowQuantError, match="quantized"):
        dequantize(table)


def test_a_tensor_of_zeros_has_no_sqnr() -> None:
    zeros = quantize(np.zeros((4, 64), np.float32))
    assert zeros.sqnr_db is None
    assert "dB" not in repr(zeros) and "inf" not in repr(zeros)
    assert repr(quantize(np.ones((4, 64), np.float32))).endswith("inf dB)")


@pytest.mark.parametrize(
    "take",
    [
        quantize,
        lambda array: _native.quantize_arrow("w", array, bit_width=4, group_size=128, scheme="affine", method="mse"),
    ],
    ids=["quantize", "native"],
)
def test_an_array_that_is_given_twice(take: Callable[[Any], Any]) -> None:
    class Given:
        def __init__(self) -> None:
            self.capsules = pa.array(weights().reshape(-1)).__arrow_c_array__()

        def __arrow_c_array__(self, requested_schema: object = None) -> Any:
            return self.capsules

    given = Given()
    assert take(given).shape == (150_000,)
    for _ in range(2):
        with pytest.raises(ArrowQuantError, match="read before"):
            take(given)
