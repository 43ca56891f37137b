"""Dtypes by the names that safetensors has for them, in NumPy and in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, QuantizationError

if TYPE_CHECKING:
    import numpy as np
    import torch

# From the name in safetensors to that in NumPy; the second are in ml_dtypes. F4, F6_E2M3 and F6_E3M2 are in neither,
# for their elements share bytes.
_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_NAMES = {**_NUMPY, **_ML_DTYPES}

# What can be quantized, from the name that NumPy, ml_dtypes and torch have for it.
QUANTIZABLE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}

_LARGEST_F16 = 65504.0


def is_float(name: str) -> bool:
    """Whether a dtype of safetensors holds real numbers."""
    return name.startswith(("F", "BF"))


def numpy_dtype(name: str, tensor: str) -> np.dtype[Any]:
    """The NumPy dtype of a safetensors dtype. `tensor` is for messages.

    Raises:
        QuantizationError: if there is none, or it takes ml_dtypes, which is not installed or too old.

    Example:
        >>> numpy_dtype("I64", "step")
        dtype('int64')
    """
    import numpy as np

    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    if name not in _ML_DTYPES:
        raise QuantizationError(f"{tensor} is {name}, which NumPy has no dtype for", tensor=tensor)
    try:
        return _from_ml_dtypes(_ML_DTYPES[name])
    except (ImportError, AttributeError) as error:
        instead = ' or ask for dtype="float32"' if name == "BF16" else ""
        message = f"{tensor} is {name}, which NumPy has only with ml_dtypes: run `pip install -U ml_dtypes`{instead}"
        raise QuantizationError(message, tensor=tensor) from error


def _from_ml_dtypes(name: str) -> np.dtype[Any]:
    import ml_dtypes
    import numpy as np

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def torch_dtype(name: str, tensor: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype. `tensor` is for messages.

    Raises:
        QuantizationError: if this version of torch has none.

    Example:
        >>> torch_dtype("BF16", "proj.weight")
        torch.bfloat16
    """
    import torch

    dtype = getattr(torch, _NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise QuantizationError(f"{tensor} is {name}, which torch {torch.__version__} has no dtype for", tensor=tensor)
    return dtype


def asked_numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """What a caller means by a dtype: anything that NumPy takes as one, or the name of one in ml_dtypes.

    Raises:
        ConfigurationError: if it means none; its `field` is ``"dtype"``.
    """
    import numpy as np

    if isinstance(dtype, str) and dtype in _ML_DTYPES.values():
        try:
            return _from_ml_dtypes(dtype)
        except (ImportError, AttributeError) as error:
            message = f'dtype "{dtype}" takes ml_dtypes: run `pip install -U ml_dtypes`'
            raise ConfigurationError(message, field="dtype") from error
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        message = f'dtype is {dtype!r}, allowed: what NumPy takes as a dtype, such as "float32", or "bfloat16"'
        raise ConfigurationError(message, field="dtype") from error
    return found


def asked_torch_dtype(dtype: Any) -> torch.dtype:
    """What a caller means by a dtype: one of torch's, or its name.

    Raises:
        ConfigurationError: if it means none; its `field` is ``"dtype"``.
    """
    import torch

    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        message = f'dtype is {dtype!r}, allowed: a torch.dtype or the name of one, such as "bfloat16"'
        raise ConfigurationError(message, field="dtype")
    return found


def restored_numpy(floats: np.ndarray[Any, np.dtype[np.float32]], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Restored weights in the dtype they had. `floats` may be changed."""
    import numpy as np

    if dtype == np.float16:
        # A weight may be restored as a little more than it was, which must not make it infinite.
        np.clip(floats, -_LARGEST_F16, _LARGEST_F16, out=floats)
    return floats.astype(dtype, copy=False)


def restored_torch(floats: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Restored weights in the dtype they had. `floats` may be changed."""
    import torch

    if dtype == torch.float16:
        floats.clamp_(-_LARGEST_F16, _LARGEST_F16)
    return floats.to(dtype)
