"""Tensors in memory: quantized, and restored as what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, overload

from . import _native
from ._native import QuantizedTensor
from .errors import ConfigurationError
from .kinds import arrow_kind, is_arrow, is_buffer, is_of, quantize_array, quantize_arrow, restored, table_kind
from .notebook import facts_html, rows_html

# What an array that has no name is called in messages and rows.
_NO_NAME = "weights"

_ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class QuantizedTensors:
    """Quantized tensors by name, like a dict, and an Arrow table of them.

    Integers and truth values of a mapping that was quantized, such as ``num_batches_tracked`` of a batch norm, are in it as
    they are; `kept` has their names. All figures and the table are of the quantized tensors alone.

    The table has one row a chunk, with the columns `tensor`, `dtype`, `shape`, `chunk`, `start` and `quantized`. The
    last holds quantized values, as the SQL functions take them. Whatever reads the Arrow PyCapsule interface reads it
    without a copy: ``pyarrow.table(tensors)``, ``polars.DataFrame(tensors)``, ``Connection.register("q", tensors)``.
    Writing it to Parquet takes pyarrow 21 or newer.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from arrow_quant_v2 import ArrowQuantV2
        >>> quantized = ArrowQuantV2().quantize({"w": np.random.randn(256, 1024).astype("float32")})
        >>> quantized["w"].bits_per_weight, quantized.nbytes
        (4.25, 139264)
        >>> pa.table(quantized).num_rows
        4
    """

    # Not a collections.abc.Mapping: polars and pandas take one for columns by name, before they ask for Arrow data.

    __slots__ = ("_every", "_restore", "_tensors")

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._every = dict(tensors)
        self._tensors = {name: value for name, value in self._every.items() if isinstance(value, QuantizedTensor)}
        # Makes a table of restored columns, where a table was quantized.
        self._restore: Callable[[dict[str, Any]], Any] | None = None

    # Of any type: a quantized tensor, or an array that was kept.
    def __getitem__(self, name: str) -> Any:
        return self._every[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._every)

    def __len__(self) -> int:
        return len(self._every)

    def __contains__(self, name: object) -> bool:
        return name in self._every

    def __repr__(self) -> str:
        count = f"{len(self._tensors)} tensor" if len(self._tensors) == 1 else f"{len(self._tensors)} tensors"
        kept = f", {len(self.kept)} kept" if self.kept else ""
        return f"QuantizedTensors({count}{kept}, {self.nbytes / 1e6:.3f} MB, {self.bits_per_weight:.2f} bits per weight)"

    def _repr_html_(self) -> str:
        figures = {"nbytes": self.nbytes, "bits_per_weight": self.bits_per_weight, "kept": ", ".join(self.kept)}
        rows = [
            {
                "tensor": name,
                "sqnr_db": tensor.sqnr_db,
                "cosine_similarity": tensor.cosine_similarity,
                "max_abs_error": tensor.max_abs_error,
                "bits": tensor.bit_width,
                "group_size": tensor.group_size,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
            }
            for name, tensor in self._tensors.items()
        ]
        return facts_html(figures) + rows_html(rows)

    def keys(self) -> KeysView[str]:
        """The names, in the order of what was quantized."""
        return self._every.keys()

    def values(self) -> ValuesView[Any]:
        """The tensors, and what was kept."""
        return self._every.values()

    def items(self) -> ItemsView[str, Any]:
        """Names and tensors, and what was kept."""
        return self._every.items()

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of a name, or `default`."""
        return self._every.get(name, default)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of arrays that are as they were: integers and truth values."""
        return tuple(name for name in self._every if name not in self._tensors)

    @property
    def elements(self) -> int:
        """Weights in all."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all codes and parameters."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """8 × bytes ÷ weights; 0.0 without weights."""
        return 8.0 * self.nbytes / max(self.elements, 1)

    @property
    def compression_ratio(self) -> float:
        """Bytes of the arrays that were quantized ÷ bytes of codes and parameters; 1.0 without weights."""
        original = sum(math.prod(tensor.shape) * _ITEM_SIZES[tensor.dtype] for tensor in self._tensors.values())
        return original / self.nbytes if self.nbytes else 1.0

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table().__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._table().__arrow_c_schema__()

    def to_pyarrow(self) -> Any:
        """The rows as a ``pyarrow.Table``; needs pyarrow."""
        return self._table().to_pyarrow()

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``; needs pandas and pyarrow."""
        return self._table().to_pandas()

    def to_polars(self) -> Any:
        """The rows as a ``polars.DataFrame``; needs polars."""
        return self._table().to_polars()

    def _table(self) -> _native.Table:
        return _native.quantized_rows(list(self._tensors.values()))


@overload
def quantize(
    weights: Mapping[str, Any],
    bit_width: int = 4,
    group_size: int = 128,
    scheme: str = "affine",
    method: str = "mse",
) -> QuantizedTensors: ...
@overload
def quantize(
    weights: Any,
    bit_width: int = 4,
    group_size: int = 128,
    scheme: str = "affine",
    method: str = "mse",
) -> Any: ...
def quantize(
    weights: Any,
    bit_width: int = 4,
    group_size: int = 128,
    scheme: str = "affine",
    method: str = "mse",
) -> Any:
    """Quantizes arrays in memory.

    Arrays are of float32, float16, float64 or bfloat16 and of any shape; groups never leave a row. Contiguous NumPy
    arrays and torch tensors on the CPU are read where they are, others are copied. Arrow data are never copied. In
    Arrow, floats are a tensor of one dimension, and each list around them, of any list type, adds one: all lists of one
    dimension are of one length.

    Args:
        weights: a mapping from names to arrays, such as a torch state dict or an open ``.npz`` file, of which integers and
            truth values are kept as they are; an Arrow table, of
            which each column is a tensor (``pyarrow.Table``, ``polars.DataFrame``, a result of SQL); or one array: a
            ``numpy.ndarray`` (also of ml_dtypes' bfloat16), a ``torch.Tensor``, or any object with the Arrow PyCapsule
            interface (``pyarrow.Array``, ``pyarrow.ChunkedArray``, ``polars.Series``).
        bit_width: bits of a code: 2, 3, 4, 5, 6 or 8.
        group_size: weights that share a scale: 16, 32, 64, 128 or 256.
        scheme: what a code means: ``"affine"``, ``"asymmetric"`` or ``"symmetric"``.
        method: how scales are found: ``"mse"``, ``"unbiased"`` or ``"minmax"``.

    Returns:
        `QuantizedTensors`, in the order of `weights`; of one array a `QuantizedTensor`, whose name is that of the
        polars Series, or ``"weights"``.

    Raises:
        ConfigurationError: if an argument is not allowed, or an array is of no kind that is understood.
        ShapeMismatchError: if an Arrow array has NULLs, or lists of unequal lengths.
        QuantizationError: if an array is of another dtype, such as complex numbers or, alone, integers, or a weight is
            NaN or infinite; its `tensor` says which.

    Example:
        >>> import numpy as np
        >>> quantized = quantize({"w": np.random.randn(256, 1024).astype("float32")}, bit_width=2, group_size=64)
        >>> quantized["w"].shape, quantized["w"].bits_per_weight
        ((256, 1024), 2.5)
        >>> quantize(torch.nn.Linear(64, 64).state_dict())
        QuantizedTensors(2 tensors, 0.002 MB, 4.50 bits per weight)
    """
    settings = {"bit_width": bit_width, "group_size": group_size, "scheme": scheme, "method": method}
    if isinstance(weights, Mapping):
        tensors = {
            _checked(name): array if is_buffer(array) else quantize_array(name, array, settings)
            for name, array in weights.items()
        }
        return QuantizedTensors(tensors)
    if is_arrow(weights):
        return _quantize_arrow_object(weights, settings)
    return quantize_array(_NO_NAME, weights, settings)


def dequantize(quantized: Any) -> Any:
    """Restores arrays in the shape, dtype and kind that they had.

    NumPy arrays come back as NumPy arrays, torch tensors as torch tensors on the CPU, arrays and tables of pyarrow and
    polars as what they were, other Arrow arrays as an `ArrowArray`, and other Arrow tables as a dict of those. Of rows
    that came from elsewhere only the dtype is known: they are restored as NumPy arrays.

    Args:
        quantized: what `quantize` returned, or some of it in a dict; or an Arrow table with the columns of
            `QuantizedTensors`, for instance one that was read from a Parquet file.

    Returns:
        One array for a `QuantizedTensor`, a table for a table that was quantized, else a dict from names to arrays.

    Raises:
        ConfigurationError: if it is none of these.
        ShapeMismatchError: if a table does not have those columns, or not all rows of a tensor.
        QuantizationError: if NumPy has no bfloat16, because ml_dtypes is not installed.

    Example:
        >>> import numpy as np, pyarrow as pa, pyarrow.parquet as pq
        >>> quantized = quantize({"w": np.ones((256, 1024), np.float16)})
        >>> dequantize(quantized)["w"].dtype
        dtype('float16')
        >>> pq.write_table(pa.table(quantized), "w.parquet")
        >>> dequantize(pq.read_table("w.parquet"))["w"].shape
        (256, 1024)
    """
    if isinstance(quantized, QuantizedTensor):
        return restored(quantized)
    if isinstance(quantized, QuantizedTensors):
        arrays = {
            name: restored(value) if isinstance(value, QuantizedTensor) else value for name, value in quantized.items()
        }
        return arrays if quantized._restore is None else quantized._restore(arrays)
    if isinstance(quantized, Mapping):
        is_known = {name: isinstance(value, QuantizedTensor) or is_buffer(value) for name, value in quantized.items()}
        wrong = next((quantized[name] for name, known in is_known.items() if not known), None)
        if all(is_known.values()):
            return {
                name: restored(value) if isinstance(value, QuantizedTensor) else value
                for name, value in quantized.items()
            }
        raise _not_quantized(f"quantized holds one of type {type(wrong).__name__}")
    if is_arrow(quantized):
        table = _native.import_arrow(quantized)
        if isinstance(table, _native.Table):
            return {tensor.name: restored(tensor) for tensor in _native.from_quantized_rows(table)}
    raise _not_quantized(f"quantized is of type {type(quantized).__name__}")


def _not_quantized(what: str) -> ConfigurationError:
    allowed = "allowed: what quantize returns, a dict of QuantizedTensor, or an Arrow table of quantized rows"
    return ConfigurationError(f"{what}, {allowed}", field="quantized")


def _checked(name: Any) -> str:
    if isinstance(name, str):
        return name
    raise ConfigurationError(f"weights has the name {name!r}, allowed: names that are strings", field="weights")


def _quantize_arrow_object(arrow: Any, settings: dict[str, Any]) -> QuantizedTensors | QuantizedTensor:
    if is_of(arrow, "polars", "Series"):
        return quantize_arrow(arrow.name or _NO_NAME, arrow, arrow_kind(arrow), settings)
    kind, restore = table_kind(arrow)
    # A stream can be read only once, so what it is made of is kept.
    imported = _native.import_arrow(arrow)
    if not isinstance(imported, _native.Table):
        return quantize_arrow(_NO_NAME, imported, arrow_kind(arrow), settings)
    tensors: dict[str, QuantizedTensor] = {}
    for name, column in _native.columns(imported):
        if name in tensors:
            raise ConfigurationError(f"weights has two columns '{name}', allowed: one of a name", field="weights")
        tensors[name] = quantize_arrow(name, column, kind, settings)
    quantized = QuantizedTensors(tensors)
    quantized._restore = restore
    return quantized
