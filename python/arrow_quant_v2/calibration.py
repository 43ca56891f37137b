"""Calibration tables of torch models: what the inputs of their layers are at each timestep.

The table, and what it is good for, is documented in ``docs/calibration.md``.

Example:
    >>> from arrow_quant_v2 import calibration
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 16))
    >>> with torch.no_grad(), calibration.record(model) as recorder:
    ...     for timestep in range(0, 1000, 100):
    ...         recorder.at(timestep)
    ...         output = model(torch.randn(8, 16))
    >>> recorder.write("calibration.parquet")
    >>> recorder.table().num_rows
    20
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard

from .errors import ConfigurationError, QuantizationError
from .moments import Moments
from .statistics import Statistics

if TYPE_CHECKING:
    from types import TracebackType

    import pyarrow as pa
    import torch

    _Layer: TypeAlias = torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d

__all__ = ["Recorder", "record"]

_MOST_BINS = 1 << 16

_WIDEST = 1 << 20


class Recorder:
    """Measures the inputs of a torch model's layers in the block of a ``with``. Made by `record`.

    Measurements stay when the block is left, and a second block adds to them.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> with record(model, samples=32) as recorder:
        ...     recorder.at(0)
        ...     output = model(torch.ones(2, 4))
        >>> recorder.table().select(["tensor", "timestep", "samples"]).to_pylist()
        [{'tensor': '0.weight', 'timestep': 0, 'samples': 2}]
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: list[tuple[str, _Layer]],
        samples: int,
        histogram_bins: int,
        second_moments: int = 0,
    ) -> None:
        self._model = model
        self._layers = layers
        self._samples = samples
        self._histogram_bins = histogram_bins
        self._moments = Moments(second_moments) if second_moments else None
        self._hooks: list[Any] = []
        self._now: tuple[int, str] | None = None
        # The number of the forward pass, and whether there is one under way.
        self._pass = 0
        self._in_pass = False
        # By tensor, state and timestep.
        self._statistics: dict[tuple[str, str, int], Statistics] = {}

    def __enter__(self) -> Recorder:
        if self._hooks:
            raise QuantizationError("this recorder is recording already: make another by record(model)")
        self._hooks.append(self._model.register_forward_pre_hook(self._begin_pass))
        self._hooks.append(self._model.register_forward_hook(self._end_pass, always_call=True))
        for tensor, layer in self._layers:
            hook = functools.partial(self._measure, tensor)
            self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def at(self, timestep: Any, state: str = "") -> None:
        """Says which denoising step the forward passes from here on are of.

        Args:
            timestep: a whole number from 0 on; of any numeric type, or an array or tensor such as models get, whose
                entries are all this number.
            state: a state of the model that shall have statistics of its own, such as ``"unconditional"``.

        Raises:
            ConfigurationError: if it is no such number, or the entries differ; its `field` says which argument.

        Example:
            >>> recorder = record(torch.nn.Linear(4, 4))
            >>> recorder.at(torch.full((8,), 980.0), state="unconditional")
        """
        if not isinstance(state, str):
            raise ConfigurationError(f"state is {state!r}, allowed: a string", field="state")
        self._now = _whole_timestep(timestep), state

    def table(self) -> pa.Table:
        """What has been measured so far, a row for each layer, timestep and state; needs pyarrow.

        Layers that were not called have no rows. The columns are ``tensor``, ``timestep``, ``state``, ``samples``,
        ``channel_min``, ``channel_max``, ``channel_mean``, ``channel_mean_square`` and, unless `histogram_bins` is 0, ``histogram``,
        ``histogram_min`` and ``histogram_max``.

        Returns:
            A ``pyarrow.Table``, in the order of the model's layers, then states, then timesteps.

        Raises:
            QuantizationError: if nothing has been measured.
            ImportError: if pyarrow is not installed.

        Example:
            >>> model = torch.nn.Linear(2, 2)
            >>> with record(model, histogram_bins=4) as recorder:
            ...     recorder.at(5)
            ...     output = model(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
            >>> row = recorder.table().to_pylist()[0]
            >>> row["channel_min"], row["channel_max"], row["channel_mean_square"]
            ([1.0, -2.0], [3.0, 0.0], [5.0, 2.0])
            >>> row["histogram"], row["histogram_min"], row["histogram_max"]
            ([1.0, 2.0, 1.0], -2.0, 4.0)
        """
        pa = _installed("pyarrow")
        if not self._statistics:
            message = "nothing was measured: run forward passes in the block of `with record(model) as recorder`"
            raise QuantizationError(f"{message}; of a model that was compiled, record the original")
        order = {tensor: index for index, (tensor, _) in enumerate(self._layers)}
        keys = sorted(self._statistics, key=lambda key: (order[key[0]], *key[1:]))
        rows = [self._statistics[key] for key in keys]
        floats = pa.list_(pa.float32())
        columns = {
            "tensor": pa.array([tensor for tensor, _, _ in keys], pa.string()),
            "timestep": pa.array([timestep for _, _, timestep in keys], pa.int64()),
            "state": pa.array([state for _, state, _ in keys], pa.string()),
            "samples": pa.array([row.samples for row in rows], pa.int64()),
            "channel_min": pa.array([row.min.astype("float32") for row in rows], floats),
            "channel_max": pa.array([row.max.astype("float32") for row in rows], floats),
            "channel_mean": pa.array([row.mean.astype("float32") for row in rows], floats),
            "channel_mean_square": pa.array([row.mean_square.astype("float32") for row in rows], floats),
        }
        if self._histogram_bins:
            histograms = [row.histogram for row in rows if row.histogram is not None]
            columns["histogram"] = pa.array([h.counts for h in histograms], pa.list_(pa.float64()))
            columns["histogram_min"] = pa.array([h.low for h in histograms], pa.float32())
            columns["histogram_max"] = pa.array([h.high for h in histograms], pa.float32())
        return pa.table(columns)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a Parquet file, which is there as a whole or not at all; needs pyarrow.

        If second moments were recorded, they are written beside it, to a file whose name ends with ``.moments.parquet`` in
        place of ``.parquet``.

        Args:
            path: the file, whose name ends with ``.parquet``. One that is there is replaced.

        Raises:
            ConfigurationError: if the name ends otherwise.
            QuantizationError: if nothing has been measured, or a file cannot be written; its `path` is the file.
            ImportError: if pyarrow is not installed.

        Example:
            >>> model = torch.nn.Linear(4, 4)
            >>> with record(model) as recorder:
            ...     recorder.at(0)
            ...     output = model(torch.ones(2, 4))
            >>> recorder.write("calibration.parquet")
        """
        target = Path(path)
        if target.suffix.lower() != ".parquet":
            message = f"path is {str(target)!r}, allowed: names that end with .parquet"
            raise ConfigurationError(message, field="path", path=str(target))
        table = self.table()
        import pyarrow.parquet as pq

        if self._moments is not None:
            inputs = self._moments.batches()

            def write_moments(file: IO[bytes]) -> None:
                # A row group for each input: they are read one at a time.
                with pq.ParquetWriter(file, inputs[0].schema, compression="zstd") as writer:
                    for of_input in inputs:
                        writer.write_table(of_input)

            if inputs:
                _replace(target.with_suffix(".moments.parquet"), write_moments)
        _replace(target, lambda file: pq.write_table(table, file, compression="zstd"))

    def _begin_pass(self, *_: Any) -> None:
        self._pass += 1
        self._in_pass = True
        if self._moments is not None:
            self._moments.begin_pass()

    def _end_pass(self, *_: Any) -> None:
        self._in_pass = False

    def _measure(self, tensor: str, layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        if self._now is None:
            message = f"{tensor} was called before recorder.at(timestep), which says what its inputs are of"
            raise QuantizationError(message, tensor=tensor)
        if not self._in_pass:
            self._begin_pass()
            self._in_pass = False
        timestep, state = self._now
        inputs: torch.Tensor = next(iter((*args, *kwargs.values())))
        with torch.no_grad():
            rows = _rows(layer, inputs)
            if not rows.numel():
                return
            key = tensor, state, timestep
            statistics = self._statistics.get(key)
            if statistics is None:
                statistics = Statistics(self._histogram_bins)
            before = statistics.samples_before(self._pass)
            rows = rows[: self._samples - before]
            if not len(rows):
                return
            channels = _channels(layer, rows)
            wrong = statistics.add(channels)
            if self._moments is not None and wrong is None and isinstance(layer, torch.nn.Linear):
                self._moments.add(tensor, inputs, channels.flatten(1))
        if wrong is not None:
            where = f"timestep {timestep}, state {state!r}" if state else f"timestep {timestep}"
            raise QuantizationError(f"{tensor}: {where}: {wrong}", tensor=tensor)
        statistics.samples = max(statistics.samples, before + len(rows))
        self._statistics[key] = statistics


def record(
    model: torch.nn.Module,
    *,
    samples: int = 128,
    histogram_bins: int = 512,
    layers: str | None = None,
    component: str = "",
    second_moments: int = 0,
) -> Recorder:
    """Measures a torch model's layers: each Linear, Conv1d and Conv2d, while it is run in the block of a ``with``.

    What is measured are the inputs, as float32: minimum, maximum and mean square of each input channel over all
    samples and positions, and a histogram of all values. Outputs are not changed. Models may be of any dtype and on any
    device, run with autocast and without gradients; one that is to be compiled is recorded before. Layers of the same
    weight are measured as one, whose name is the weight's first in ``model.named_parameters()``. Channels of a grouped
    convolution that have the same place in their groups count as one, as they do in the weight.

    Args:
        model: the model, or the part of it that is to be quantized. Tensors are named as in its state dict.
        samples: most rows of batches that are measured of each layer, timestep and state; later ones are not.
        histogram_bins: most bins of a histogram, 2 to 65,536, or 0 for no histograms.
        layers: a regular expression: only layers whose name has a match are measured, such as ``r"^blocks\\."``. The
            default is all.
        component: the sub-model of a pipeline that `model` is, such as ``"unet"``; tensors are then named
            ``component/tensor``.
        second_moments: channels of a block of second moments, which ``method="ldlq"`` needs: how the inputs of Linear layers
            go together, added up over all timesteps and states. 512 keeps files and times small, and a number as large as the
            widest layer says most. 0 records none. At least four times as many positions as a block has channels are of use.

    Returns:
        A `Recorder`. In its block a forward pass is an error (`QuantizationError`) until `Recorder.at` has been called,
        and if a layer gets NaN or infinities; its `tensor` is the layer's weight.

    Raises:
        ConfigurationError: if an argument is not allowed, or there is no layer to measure; its `field` says which.
        ImportError: if torch is not installed.

    Example:
        >>> images = torch.rand(16, 1, 8, 8)
        >>> model = torch.nn.Conv2d(1, 32, kernel_size=3)
        >>> with torch.no_grad(), record(model, component="unet") as recorder:
        ...     for timestep in (0, 500, 999):
        ...         recorder.at(timestep)
        ...         output = model(images + timestep / 1000 * torch.randn_like(images))
        >>> recorder.table()["tensor"].unique().to_pylist()
        ['unet/weight']
    """
    torch = _installed("torch")
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(f"model is of type {type(model).__name__}, allowed: a torch.nn.Module", field="model")
    if not _is_whole(samples) or samples < 1:
        raise ConfigurationError(f"samples is {samples!r}, allowed: 1 or more", field="samples")
    if not _is_whole(histogram_bins) or not (histogram_bins == 0 or 2 <= histogram_bins <= _MOST_BINS):
        message = f"histogram_bins is {histogram_bins!r}, allowed: 0 for none, or 2 to {_MOST_BINS}"
        raise ConfigurationError(message, field="histogram_bins")
    if not isinstance(component, str):
        raise ConfigurationError(f"component is {component!r}, allowed: a string", field="component")
    if not _is_whole(second_moments) or not 0 <= second_moments <= _WIDEST:
        message = f"second_moments is {second_moments!r}, allowed: 0 for none, or channels of a block, up to {_WIDEST}"
        raise ConfigurationError(message, field="second_moments")
    return Recorder(model, _measured_layers(model, layers, component), samples, histogram_bins, second_moments)


def _replace(target: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file, which is there as a whole or not at all.

    Raises:
        QuantizationError: if it cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}.partial")
    try:
        try:
            with open(partial, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror or error}"
        raise QuantizationError(message, path=str(target)) from error


def _measured_layers(model: torch.nn.Module, pattern: str | None, component: str) -> list[tuple[str, _Layer]]:
    """The layers to measure, with the names of their weights."""
    import torch

    if not isinstance(pattern, str | None):
        raise ConfigurationError(f"layers is {pattern!r}, allowed: a regular expression, or None", field="layers")
    try:
        matches = re.compile(pattern or "").search
    except re.error as error:
        message = f"layers is {pattern!r}, which is not a regular expression: {error}"
        raise ConfigurationError(message, field="layers") from error
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if not layers:
        raise ConfigurationError("model has no Linear, Conv1d or Conv2d, which are what is measured", field="model")
    chosen = [(name, layer) for name, layer in layers if matches(name)]
    if not chosen:
        names = ", ".join(name for name, _ in layers[:3])
        raise ConfigurationError(f"layers is {pattern!r}, which matches none of the model's: {names} …", field="layers")
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    prefix = f"{component}/" if component else ""
    measured = []
    for name, layer in chosen:
        # A weight that is computed, as of a parametrized layer, is no parameter.
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        own_name = f"{name}.weight" if name else "weight"
        measured.append((prefix + first_names.get(id(weight), own_name), layer))
    return measured


def _rows(layer: _Layer, inputs: torch.Tensor) -> torch.Tensor:
    """A layer's inputs with an axis of samples first."""
    import torch

    without = 1 if isinstance(layer, torch.nn.Linear) else 1 + len(layer.kernel_size)
    return inputs.unsqueeze(0) if inputs.dim() == without else inputs


def _channels(layer: _Layer, rows: torch.Tensor) -> torch.Tensor:
    """A layer's inputs in the shape (any, input channels of its weight, any)."""
    import torch

    if isinstance(layer, torch.nn.Linear):
        return rows.reshape(-1, rows.shape[-1], 1)
    return rows.reshape(len(rows) * layer.groups, rows.shape[1] // layer.groups, -1)


def _whole_timestep(timestep: Any) -> int:
    values = timestep.reshape(-1).tolist() if hasattr(timestep, "reshape") else [timestep]
    other = next((value for value in values if value != values[0]), None)
    if other is not None:
        message = f"timestep has {values[0]} and {other}, allowed: one timestep a forward pass"
        raise ConfigurationError(message, field="timestep")
    value = values[0] if values else None
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not _is_whole(whole) or not 0 <= whole < 2**63:
        message = f"timestep is {value!r}, allowed: whole numbers from 0 on; scale or round others"
        raise ConfigurationError(message, field="timestep")
    return whole


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: run `pip install {name}`") from error
