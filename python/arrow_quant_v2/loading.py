"""Quantized models, restored tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from . import _native
from .dtypes import (
    asked_numpy_dtype,
    asked_torch_dtype,
    is_float,
    numpy_dtype,
    restored_numpy,
    restored_torch,
    torch_dtype,
)
from .errors import ConfigurationError
from .jobs import checked_path

if TYPE_CHECKING:
    import numpy as np
    import torch

    # In LazyTensor, torch is a method.
    _Tensor: TypeAlias = torch.Tensor
    _Dtype: TypeAlias = torch.dtype


class LazyTensor:
    """A tensor of a quantized model, which is read each time it is asked for.

    Attributes:
        name: its name, ``component/tensor`` in a pipeline.
        component: the sub-model of a pipeline; empty in a plain model.
        shape: its dimensions.
        dtype: the dtype it had before, as safetensors calls it: ``"BF16"``, ``"F32"``, ``"I64"``.
        encoding: ``"int4"`` or another width, a type of blocks such as ``"q4_k"``, or the dtype if the tensor was kept.
        bits: bits of a code; None if the tensor was kept as it was.
        group_size: weights that share a scale; None if the tensor was kept, and of blocks.
        same_as: the name of the tensor that is stored for both, if they are equal; else None.

    Example:
        >>> weight = load_quantized("dream-7b-int4/")["model.embed_tokens.weight"]
        >>> weight.shape, weight.dtype, weight.bits
        ((152064, 3584), 'BF16', 4)
        >>> weight.numpy("float32").std()
        0.0151
    """

    __slots__ = ("_reader", "_tensor", "bits", "component", "dtype", "encoding", "group_size", "name", "same_as", "shape")

    def __init__(self, reader: _native.ModelReader, report: Mapping[str, Any]) -> None:
        self._reader = reader
        self._tensor: str = report["tensor"]
        self.component: Final[str] = report["component"]
        self.name: Final[str] = f"{self.component}/{self._tensor}" if self.component else self._tensor
        self.shape: Final[tuple[int, ...]] = tuple(report["shape"])
        self.dtype: Final[str] = report["dtype"]
        self.bits: Final[int | None] = report["bits"]
        # Directories of versions 1 and 2 name no encodings.
        self.encoding: Final[str] = report["encoding"] or (self.dtype if self.bits is None else f"int{self.bits}")
        self.group_size: Final[int | None] = report["group_size"]
        self.same_as: Final[str | None] = report.get("same_as")

    def __repr__(self) -> str:
        how = "kept" if self.bits is None else f"{self.bits} bits in groups of {self.group_size}"
        if self.bits is not None and self.group_size is None:
            how = self.encoding
        return f"LazyTensor({self.name!r}, {self.dtype} {list(self.shape)}, {how})"

    @property
    def elements(self) -> int:
        """How many they are."""
        return math.prod(self.shape)

    def numpy(self, dtype: Any = None) -> np.ndarray[Any, Any]:
        """Reads the tensor as a NumPy array of its own.

        NumPy has BF16 and the dtypes of 8 bits (``F8_E4M3`` and others) with ml_dtypes only. What comes does not depend
        on what is installed: without ml_dtypes such a tensor is an error. A BF16 tensor can be had as ``"float32"`` all
        the same, which holds each of its values.

        Args:
            dtype: what NumPy takes as a dtype, or the name of one of ml_dtypes such as ``"bfloat16"``; the default is
                the dtype the tensor had. Quantized weights are restored as float32 and rounded from there.

        Returns:
            An array of the tensor's shape.

        Raises:
            ConfigurationError: if `dtype` is none; its `field` is ``"dtype"``.
            QuantizationError: if NumPy does not have the dtype; its `tensor` is the tensor's name.
            MetadataError: if the model's files are damaged.

        Example:
            >>> load_quantized("dream-7b-int4/")["lm_head.weight"].numpy("float16").nbytes
            1089994752
        """
        import numpy as np

        asked = None if dtype is None else asked_numpy_dtype(dtype)
        if self.bits is not None:
            own = numpy_dtype(self.dtype, self.name) if asked is None else asked
            floats = np.empty(self.shape, np.float32)
            self._read(floats.reshape(-1).view(np.uint8))
            return restored_numpy(floats, own) if self.dtype == "F16" else floats.astype(own, copy=False)
        if self.dtype == "BF16" and asked is not None and asked.name != "bfloat16":
            # Needs no ml_dtypes: they are the upper halves of float32.
            halves = np.empty(self.shape, np.uint16)
            self._read(halves.reshape(-1).view(np.uint8))
            floats = np.left_shift(halves, 16, dtype=np.uint32).view(np.float32)
            return floats.astype(asked, copy=False)
        kept = np.empty(self.shape, numpy_dtype(self.dtype, self.name))
        self._read(kept.reshape(-1).view(np.uint8))
        return kept if asked is None else kept.astype(asked, copy=False)

    def torch(self, dtype: Any = None) -> _Tensor:
        """Reads the tensor as a torch tensor of its own, on the CPU.

        Args:
            dtype: a ``torch.dtype`` or the name of one, such as ``"bfloat16"``; the default is the dtype the tensor
                had. Quantized weights are restored as float32 and rounded from there.

        Returns:
            A tensor of the same shape.

        Raises:
            ConfigurationError: if `dtype` is none; its `field` is ``"dtype"``.
            QuantizationError: if this torch does not have the dtype; its `tensor` is the tensor's name.
            ImportError: if torch is not installed.
            MetadataError: if the model's files are damaged.

        Example:
            >>> load_quantized("dream-7b-int4/")["model.norm.weight"].torch().dtype
            torch.bfloat16
        """
        _torch()
        return self._restored(None if dtype is None else asked_torch_dtype(dtype), None)

    def _restored(self, asked: _Dtype | None, room: _Tensor | None) -> _Tensor:
        """The tensor, of a dtype or its own; `room` for its elements as float32 may be there to be used again."""
        import torch

        own = torch_dtype(self.dtype, self.name) if asked is None or self.bits is None else asked
        if self.bits is not None and own != torch.float32:
            floats = (
                torch.empty(self.elements, dtype=torch.float32, device="cpu") if room is None else room[: self.elements]
            )
            self._read(floats.view(torch.uint8).numpy())
            restored = restored_torch(floats, own) if self.dtype == "F16" else floats.to(own)
            return restored.reshape(self.shape)
        tensor = torch.empty(self.shape, dtype=own, device="cpu")
        self._read(tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor if asked is None else tensor.to(asked)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError(f"{self.name} cannot be had without a copy: it is read from files")
        return self.numpy(dtype)

    def _read(self, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._reader.read(self.component, self._tensor, out)


class QuantizedModel(Mapping[str, LazyTensor]):
    """The tensors of a quantized model by name, ``component/tensor`` in a pipeline, in the order of the model.

    Example:
        >>> model = load_quantized("dream-7b-int4/")
        >>> [name for name, tensor in model.items() if tensor.bits is None]
        ['model.norm.weight']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = checked_path(path, "path")
        reader = _native.ModelReader(self._path)
        tensors = (LazyTensor(reader, report) for report in reader.report()["tensors"])
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(self._unknown(name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of a name, or `default`."""
        return self._tensors.get(name, default)

    def __repr__(self) -> str:
        count = f"{len(self)} tensor" if len(self) == 1 else f"{len(self)} tensors"
        return f"QuantizedModel({self._path!r}, {count})"

    @property
    def path(self) -> str:
        """The model's directory."""
        return self._path

    @property
    def components(self) -> tuple[str, ...]:
        """The sub-models of a pipeline; empty for a plain model."""
        return tuple(dict.fromkeys(tensor.component for tensor in self.values() if tensor.component))

    def _unknown(self, name: Any) -> str:
        """A message that a tensor is not there, with names that are like its."""
        import difflib

        near = [known for known in self if known.endswith(f"/{name}")]
        near += [known for known in difflib.get_close_matches(str(name), self, n=3) if known not in near]
        hint = f"; the nearest: {', '.join(near[:3])}" if near else ""
        return f"{self._path} has no tensor '{name}'{hint}"


def load_quantized(path: str | os.PathLike[str]) -> QuantizedModel:
    """Opens a quantized model. Nothing but its manifest is read until a tensor is asked for.

    Args:
        path: a directory that was made by `quantize_diffusion_model`, `quantize_model` or ``arrow-quant quantize``.

    Returns:
        A mapping from the tensors' names, ``component/tensor`` in a pipeline, to `LazyTensor`.

    Raises:
        ConfigurationError: if `path` is no path; its `field` is ``"path"``.
        ModelNotFoundError: if there is no quantized model at `path`.
        MetadataError: if its files are damaged.

    Example:
        >>> model = load_quantized("dream-7b-int4/")
        >>> model["model.embed_tokens.weight"].numpy("float32").shape
        (152064, 3584)
    """
    return QuantizedModel(path)


def load_state_dict(
    path: str | os.PathLike[str], dtype: Any = None, component: str | None = None
) -> dict[str, _Tensor]:
    """Restores a quantized model for ``module.load_state_dict``.

    Beyond the result it takes the memory of one tensor at most. Tensors that the original held more than once, such as
    an output layer that is the embedding, are one torch tensor under each of their names.

    Args:
        path: the directory of a quantized model.
        dtype: a ``torch.dtype`` of floating point or the name of one, for all tensors that are of floating point;
            integers and booleans stay what they are, as with ``module.to(dtype)``. The default is the dtype each tensor
            had.
        component: the sub-model of a pipeline to restore, such as ``"unet"``: its tensors under their own names. The
            default is all of them; then those of a pipeline are named ``component/tensor``.

    Returns:
        A dict from names to tensors on the CPU, in the order of the model.

    Raises:
        ConfigurationError: if `path` is no path, `dtype` none of floating point, or there is no such component; its
            `field` says which.
        ModelNotFoundError: if there is no quantized model at `path`.
        MetadataError: if its files are damaged.
        QuantizationError: if a tensor is of a dtype that this torch does not have.
        ImportError: if torch is not installed.

    Example:
        >>> module = MyModel()
        >>> module.load_state_dict(load_state_dict("my-model-int4/"))
        <All keys matched successfully>
        >>> unet.load_state_dict(load_state_dict("stable-diffusion-int4/", torch.float16, component="unet"))
        <All keys matched successfully>
    """
    torch = _torch()
    asked = None if dtype is None else asked_torch_dtype(dtype)
    if asked is not None and not asked.is_floating_point:
        raise ConfigurationError(f"dtype is {asked}, allowed: one of floating point", field="dtype")
    model = QuantizedModel(path)
    if component is not None and component not in (model.components or ("",)):
        there = f"allowed: {', '.join(model.components)}" if model.components else "the model has none, leave it out"
        raise ConfigurationError(f"component is '{component}', {there}", field="component", path=model.path)
    chosen = [tensor for tensor in model.values() if component is None or tensor.component == component]
    # One for all: memory that is allocated and freed between tensors that stay would not be given back.
    largest = max((tensor.elements for tensor in chosen if tensor.bits is not None), default=0)
    room = torch.empty(largest, dtype=torch.float32, device="cpu")
    stored: dict[str, _Tensor] = {}
    tensors: dict[str, _Tensor] = {}
    for tensor in chosen:
        key = tensor.same_as or tensor.name
        if key not in stored:
            stored[key] = tensor._restored(asked if is_float(tensor.dtype) else None, room)
        tensors[tensor.name if component is None else tensor._tensor] = stored[key]
    return tensors


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("torch is not installed: run `pip install torch`") from error
    return torch
