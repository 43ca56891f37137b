"""Histograms of values whose range is not known before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class DoublingHistogram:
    """Counts of values in bins of one width, a power of two, that doubles when there would be too many bins.

    Bins begin at multiples of their width. Two become one when it doubles, so no count is ever estimated, and the order
    in which values came makes no difference. The bins are those from the least value to the greatest: `bins` at most
    and, unless all values are almost equal, about half of that at least.

    Attributes:
        first: the first bin begins at `first` times `width`; exact in float32.
        counts: float64, one entry a bin.

    Args:
        bins: most bins there may be, 2 or more.

    Example:
        >>> histogram = DoublingHistogram(4)
        >>> histogram.cover(-1.0, 0.9)
        >>> histogram.low, histogram.high, histogram.counts
        (-1.0, 1.0, array([0., 0., 0., 0.]))
        >>> histogram.add(np.array([5.0, 1.0, 2.0, 3.0]))
        >>> histogram.cover(2.5, 2.5)
        >>> histogram.low, histogram.high, histogram.counts
        (-1.0, 3.0, array([6., 5., 0., 0.]))
    """

    def __init__(self, bins: int) -> None:
        import numpy as np

        self._bins = bins
        self._least = math.inf
        self._greatest = -math.inf
        self._exponent = 0
        self.first = 0
        self.counts: np.ndarray[Any, np.dtype[np.float64]] = np.zeros(0)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent)

    @property
    def low(self) -> float:
        """Where the first bin begins; exact in float32."""
        return self.first * self.width

    @property
    def high(self) -> float:
        """Where the last bin ends; exact in float32. All values are below."""
        return (self.first + len(self.counts)) * self.width

    def cover(self, least: float, greatest: float) -> None:
        """Makes bins for values from `least` to `greatest`, which are finite."""
        import numpy as np

        self._least, self._greatest = min(self._least, least), max(self._greatest, greatest)
        # So that places of values, and bounds of bins, are whole numbers that float32 holds; and 1 / width is finite.
        magnitude = max(abs(self._least), abs(self._greatest))
        exponent = max(-126, math.frexp(magnitude)[1] - 23)
        span = self._greatest - self._least
        if span > 0.0:
            exponent = max(exponent, math.frexp(span / (self._bins + 1))[1] - 1)
        while self._place(self._greatest, exponent) - self._place(self._least, exponent) >= self._bins:
            exponent += 1
        first = self._place(self._least, exponent)
        counts = np.zeros(self._place(self._greatest, exponent) - first + 1)
        if len(self.counts):
            places = np.arange(self.first, self.first + len(self.counts)) >> min(exponent - self._exponent, 63)
            np.add.at(counts, places - first, self.counts)
        self._exponent, self.first, self.counts = exponent, first, counts

    def add(self, counts: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        """Adds counts of values, one entry a bin."""
        self.counts += counts

    @staticmethod
    def _place(value: float, exponent: int) -> int:
        return math.floor(math.ldexp(value, -exponent))
