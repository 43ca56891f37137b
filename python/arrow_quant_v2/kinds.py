"""Tensors of every kind in memory: how they are quantized, and how they become again what they were.

The `_kind` of a QuantizedTensor is the function that restores it; None for one that came as rows.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _native
from ._native import QuantizedTensor
from .dtypes import QUANTIZABLE, numpy_dtype, restored_numpy, restored_torch, torch_dtype
from .errors import ConfigurationError, QuantizationError

if TYPE_CHECKING:
    import numpy as np
    import torch

# How a quantized tensor becomes what it was made of.
Restore: TypeAlias = Callable[[QuantizedTensor], Any]

_ALLOWED = "allowed: NumPy arrays, torch tensors, Arrow arrays, and a mapping or an Arrow table of them"


def quantize_array(name: str, array: Any, settings: dict[str, Any]) -> QuantizedTensor:
    """Quantizes one array, of any kind.

    Raises:
        ConfigurationError: if it is of no kind that is understood.
        QuantizationError: if it is of another dtype, or a weight is NaN or infinite.
        ShapeMismatchError: if it is an Arrow array with NULLs, or lists of unequal lengths.
    """
    import numpy as np

    # What NumPy computes without dimensions is no ndarray.
    if isinstance(array, (np.ndarray, np.generic)):
        return _quantize_numpy(name, array, settings)
    if is_of(array, "torch", "Tensor"):
        return _quantize_torch(name, array, settings)
    if is_arrow(array):
        return quantize_arrow(name, array, arrow_kind(array), settings)
    raise ConfigurationError(f"{name} is of type {type(array).__name__}, {_ALLOWED}", field="weights", tensor=name)


def is_buffer(array: Any) -> bool:
    """Whether an array is of integers or truth values: a buffer of a module, which is kept as it is."""
    import numpy as np

    if isinstance(array, (np.ndarray, np.generic)):
        # Those of ml_dtypes, such as int4, are of no kind of NumPy's.
        return array.dtype.kind in "biu"
    if is_of(array, "torch", "Tensor"):
        return not (array.is_floating_point() or array.is_complex() or array.is_quantized)
    return False


def restored(quantized: QuantizedTensor) -> Any:
    """What a quantized tensor was made of, but for what was lost."""
    kind: Restore | None = quantized._kind
    return _restore_numpy(quantized) if kind is None else kind(quantized)


def _quantizable(name: str, dtype: str, found: object) -> str:
    """The name in safetensors of a dtype that NumPy or torch calls `dtype`."""
    quantizable = QUANTIZABLE.get(dtype)
    if quantizable is None:
        message = f"{name} is of {found}, allowed: {', '.join(QUANTIZABLE)}; convert it, or leave it out"
        raise QuantizationError(message, tensor=name)
    return quantizable


# NumPy


def _quantize_numpy(name: str, array: np.ndarray[Any, Any] | np.generic, settings: dict[str, Any]) -> QuantizedTensor:
    import numpy as np

    kind: Restore = _restore_numpy
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise QuantizationError(f"{name} is a masked array: fill it first", tensor=name)
    dtype = _quantizable(name, array.dtype.name, array.dtype)
    if not array.dtype.isnative:
        kind = functools.partial(_restore_swapped, array.dtype)
        array = array.astype(array.dtype.newbyteorder())
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    quantized = _native.quantize_buffer(name, data, dtype, array.shape, **settings)
    quantized._kind = kind
    return quantized


def _restore_numpy(quantized: QuantizedTensor) -> np.ndarray[Any, Any]:
    import numpy as np

    dtype = numpy_dtype(quantized.dtype, quantized.name)
    floats = np.empty(math.prod(quantized.shape), np.float32)
    quantized.dequantize_into(floats)
    return restored_numpy(floats, dtype).reshape(quantized.shape)


def _restore_swapped(dtype: np.dtype[Any], quantized: QuantizedTensor) -> np.ndarray[Any, Any]:
    return _restore_numpy(quantized).astype(dtype)


# torch


def _quantize_torch(name: str, tensor: torch.Tensor, settings: dict[str, Any]) -> QuantizedTensor:
    import torch

    dtype = _quantizable(name, str(tensor.dtype).removeprefix("torch."), tensor.dtype)
    if tensor.layout != torch.strided or tensor.is_meta:
        what = "on the device meta" if tensor.is_meta else f"of the layout {tensor.layout}"
        raise QuantizationError(f"{name} is {what}, allowed: dense tensors that hold data", tensor=name)
    elements = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1)
    data = elements.view(torch.uint8).numpy()
    quantized = _native.quantize_buffer(name, data, dtype, tuple(tensor.shape), **settings)
    quantized._kind = _restore_torch
    return quantized


def _restore_torch(quantized: QuantizedTensor) -> torch.Tensor:
    import torch

    floats = torch.empty(math.prod(quantized.shape), dtype=torch.float32, device="cpu")
    quantized.dequantize_into(floats.numpy())
    return restored_torch(floats, torch_dtype(quantized.dtype, quantized.name)).reshape(quantized.shape)


# Arrow


def is_arrow(array: Any) -> bool:
    """Whether an object has the Arrow PyCapsule interface."""
    return hasattr(array, "__arrow_c_stream__") or hasattr(array, "__arrow_c_array__")


def is_of(array: Any, module: str, name: str) -> bool:
    """Whether an object is of a class of an optional package. If that is not imported, it is not."""
    return isinstance(array, getattr(sys.modules.get(module), name, ()))


def quantize_arrow(name: str, array: Any, kind: Restore, settings: dict[str, Any]) -> QuantizedTensor:
    """Quantizes an Arrow array, which is restored as `kind` says."""
    quantized = _native.quantize_arrow(name, array, **settings)
    quantized._kind = kind
    return quantized


def arrow_kind(array: Any) -> Restore:
    """How an array of this kind is restored."""
    if is_of(array, "pyarrow", "ChunkedArray"):
        return _restore_chunked_array
    if is_of(array, "pyarrow", "Array"):
        return _restore_pyarrow_array
    if is_of(array, "polars", "Series"):
        return functools.partial(_restore_series, array.name)
    return QuantizedTensor.dequantize_arrow


def table_kind(table: Any) -> tuple[Restore, Callable[[dict[str, Any]], Any] | None]:
    """How the columns of a table of this kind are restored, and how the table is made of them."""
    if is_of(table, "pyarrow", "Table"):
        return _restore_chunked_array, functools.partial(_pyarrow_table, table.schema)
    if is_of(table, "pyarrow", "RecordBatch"):
        return _restore_pyarrow_array, functools.partial(_pyarrow_batch, table.schema)
    if is_of(table, "polars", "DataFrame"):
        return _restore_column, _polars_frame
    return QuantizedTensor.dequantize_arrow, None


def _restore_pyarrow_array(quantized: QuantizedTensor) -> Any:
    import pyarrow as pa

    return pa.array(quantized.dequantize_arrow())


def _restore_chunked_array(quantized: QuantizedTensor) -> Any:
    import pyarrow as pa

    return pa.chunked_array(quantized.dequantize_arrow())


def _restore_series(name: str, quantized: QuantizedTensor) -> Any:
    import polars as pl

    return pl.Series(name, quantized.dequantize_arrow())


def _restore_column(quantized: QuantizedTensor) -> Any:
    return _restore_series(quantized.name, quantized)


def _pyarrow_table(schema: Any, columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _pyarrow_batch(schema: Any, columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def _polars_frame(columns: dict[str, Any]) -> Any:
    import polars as pl

    return pl.DataFrame(list(columns.values()))
