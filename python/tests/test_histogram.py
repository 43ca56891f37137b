"""Histograms that grow are those that would have been made at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arrow_quant_v2.histogram import DoublingHistogram


def gather(bins: int, *batches: np.ndarray) -> DoublingHistogram:
    """The histogram of batches, one after the other."""
    histogram = DoublingHistogram(bins)
    for values in batches:
        histogram.cover(float(values.min()), float(values.max()))
        places = np.floor(values.astype(np.float64) / histogram.width).astype(np.int64) - histogram.first
        histogram.add(np.bincount(places, minlength=len(histogram.counts)).astype(np.float64))
    return histogram


def numpy_histogram(histogram: DoublingHistogram, values: np.ndarray) -> np.ndarray:
    """NumPy's counts in the same bins."""
    edges = histogram.low + histogram.width * np.arange(len(histogram.counts) + 1)
    return np.histogram(values.astype(np.float64), edges)[0]


@pytest.mark.parametrize("bins", (2, 3, 64, 512))
def test_growing_estimates_nothing(bins: int) -> None:
    random = np.random.default_rng(bins)
    for _ in range(50):
        scales, shifts = 10.0 ** random.uniform(-6, 6, size=(2, 5))
        batches = [
            (scale * random.standard_normal(100) + random.choice([-shift, 0.0, shift])).astype(np.float32)
            for scale, shift in zip(scales, shifts, strict=True)
        ]
        values = np.concatenate(batches)
        histogram = gather(bins, *batches)
        assert histogram.counts.tolist() == numpy_histogram(histogram, values).tolist()
        assert histogram.counts.sum() == len(values)
        assert 1 < len(histogram.counts) <= bins
        # Neither end has an empty bin, so that the range is that of the values but for one width.
        assert histogram.counts[0] > 0 and histogram.counts[-1] > 0
        for other in (gather(bins, values), gather(bins, *reversed(batches))):
            assert (other.low, other.high) == (histogram.low, histogram.high)
            assert other.counts.tolist() == histogram.counts.tolist()


def test_most_bins_are_used() -> None:
    for seed in range(100):
        values = np.random.default_rng(seed).standard_normal(1000).astype(np.float32)
        assert 256 <= len(gather(512, values).counts) <= 512


@pytest.mark.parametrize(
    "values, bins",
    [
        ([0.0], 1),
        ([5.0, 5.0], 1),
        ([-5.0], 1),
        ([np.nextafter(np.float32(0), np.float32(1))], 1),
        ([np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny], 3),
        ([1e6, np.nextafter(np.float32(1e6), np.float32(np.inf))], 1),
        ([1e19, -1e19, 1e-30], 4),
    ],
)
def test_values_without_a_range_and_at_the_bounds_of_float32(values: list[float], bins: int) -> None:
    floats = np.array(values, np.float32)
    histogram = gather(4, floats)
    assert len(histogram.counts) == bins
    assert histogram.low <= floats.min() <= floats.max() < histogram.high
    assert (np.float32(histogram.low), np.float32(histogram.high)) == (histogram.low, histogram.high)
    assert math.isfinite(np.float32(1.0 / histogram.width))
    # From these values to a usual range and back in order, nothing is lost.
    wide = np.array([-1.0, 1.0], np.float32)
    assert gather(4, floats, wide).counts.tolist() == gather(4, wide, floats).counts.tolist()
    assert gather(4, floats, wide).counts.sum() == len(values) + 2
