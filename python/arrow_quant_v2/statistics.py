"""What the inputs of a layer are at one timestep: ranges, means and a histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .histogram import DoublingHistogram

if TYPE_CHECKING:
    import numpy as np
    import torch

    _Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# Bounds the copies that are made of a layer's inputs while they are measured.
_ELEMENTS_AT_ONCE = 1 << 22


class Statistics:
    """The inputs of the layers of one weight, at one timestep and in one state."""

    def __init__(self, histogram_bins: int) -> None:
        import numpy as np

        self.samples = 0
        self._pass = -1
        self._samples_before = 0
        # Values of each channel.
        self._values = 0
        self.min: _Floats = np.array(np.inf)
        self.max: _Floats = np.array(-np.inf)
        self._squares: _Floats = np.array(0.0)
        self._sums: _Floats = np.array(0.0)
        self.histogram = DoublingHistogram(histogram_bins) if histogram_bins else None

    @property
    def mean_square(self) -> _Floats:
        return self._squares / self._values

    @property
    def mean(self) -> _Floats:
        return self._sums / self._values

    def samples_before(self, number: int) -> int:
        """Samples of the passes before that of a number, which is under way.

        Calls of one pass are of the same samples, so that none of them takes the room of another.
        """
        if number != self._pass:
            self._pass, self._samples_before = number, self.samples
        return self._samples_before

    def add(self, values: torch.Tensor) -> str | None:
        """Measures inputs of the shape (any, channels, any). Returns what is wrong with them, if anything is."""
        import numpy as np
        import torch

        parts = torch.split(values, max(1, _ELEMENTS_AT_ONCE // (values.shape[1] * values.shape[2])))
        reduced = torch.stack([_reduced(part.float()) for part in parts])
        # Only sums leave the device, all at once.
        parts_min, parts_max, parts_squares, parts_sums = reduced.cpu().double().numpy().transpose(1, 0, 2)
        least, greatest, squares = parts_min.min(0), parts_max.max(0), parts_squares.sum(0)
        if not np.isfinite(squares).all():
            channel = int(np.flatnonzero(~np.isfinite(squares))[0])
            if np.isnan(squares[channel]):
                return f"an input of channel {channel} is NaN"
            if np.isinf([least[channel], greatest[channel]]).any():
                return f"an input of channel {channel} is infinite"
            return f"inputs of channel {channel} are too large: float32 does not hold the sum of their squares"
        self.min = np.minimum(self.min, least)
        self.max = np.maximum(self.max, greatest)
        self._squares = self._squares + squares
        self._sums = self._sums + parts_sums.sum(0)
        self._values += values.shape[0] * values.shape[2]
        if self.histogram is not None:
            self.histogram.cover(float(least.min()), float(greatest.max()))
            counts = torch.stack([_counted(part.float(), self.histogram) for part in parts]).sum(0)
            self.histogram.add(counts.cpu().double().numpy())
        return None


def _reduced(values: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum, sum of squares and sum of each channel."""
    import torch

    return torch.stack([values.amin((0, 2)), values.amax((0, 2)), values.square().sum((0, 2)), values.sum((0, 2))])


def _counted(values: torch.Tensor, histogram: DoublingHistogram) -> torch.Tensor:
    """How many values are in each bin of a histogram that covers them."""
    import torch

    bins = len(histogram.counts)
    # Exact, for the width is a power of two. The bounds are for devices that take the least numbers for zero.
    places = (values * (1.0 / histogram.width)).floor_().clamp_(histogram.first, histogram.first + bins - 1)
    return torch.bincount(places.sub_(histogram.first).int().flatten(), minlength=bins)
