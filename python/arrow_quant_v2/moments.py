"""Second moments of what torch layers get: Σ x xᵀ, in diagonal blocks. `docs/calibration.md` has their table."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


class _Input:
    """The second moments of one input, which several layers may share."""

    def __init__(self, name: str, channels: int, block: int) -> None:
        self.name = name
        self.tensors: list[str] = []
        self.channels = channels
        self.rows = 0
        self._starts = range(0, channels, block)
        self._block = block
        self._grams: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows of the shape (any, channels)."""
        rows = rows.float()
        parts = [rows[:, start : start + self._block] for start in self._starts]
        grams = [part.T @ part for part in parts]
        if self._grams:
            for total, gram in zip(self._grams, grams, strict=True):
                total += gram
        else:
            self._grams = grams
        self.rows += len(rows)

    def blocks(self) -> list[tuple[int, Any]]:
        """The first channel of each block, and its upper triangle, row by row."""
        import numpy as np

        found = []
        for start, gram in zip(self._starts, self._grams, strict=True):
            square = gram.cpu().numpy()
            found.append((start, square[np.triu_indices(len(square))]))
        return found


class Moments:
    """The second moments of all inputs. Layers that get the same tensor in a pass share an input."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._inputs: dict[str, _Input] = {}
        # The input that each weight is multiplied with, as its first pass told.
        self._of_tensor: dict[str, str] = {}
        # What layers got in this pass, and the weight of the first that did.
        self._seen: list[tuple[weakref.ref[torch.Tensor], str]] = []

    def begin_pass(self) -> None:
        """Forgets the tensors of the pass before."""
        self._seen.clear()

    def add(self, tensor: str, given: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds what the layer of a weight was given: `rows` of it, of the shape (any, channels)."""
        first = next((first for seen, first in self._seen if seen() is given), None)
        if first is None:
            self._seen.append((weakref.ref(given), tensor))
        known = self._of_tensor.get(tensor)
        if known is None:
            known = tensor if first is None else self._of_tensor.get(first, tensor)
            if known in self._inputs and self._inputs[known].channels != rows.shape[1]:
                known = tensor
            self._of_tensor[tensor] = known
            self._inputs.setdefault(known, _Input(known, rows.shape[1], self._block)).tensors.append(tensor)
        # Once for all layers of an input: by the one that it is called after.
        if known == tensor:
            self._inputs[known].add(rows)

    def batches(self) -> list[pa.Table]:
        """A table for each input."""
        import pyarrow as pa

        schema = pa.schema(
            [
                ("input", pa.string()),
                ("tensors", pa.list_(pa.string())),
                ("timestep", pa.int64()),
                ("samples", pa.int64()),
                ("channels", pa.int32()),
                ("start", pa.int32()),
                ("size", pa.int32()),
                ("gram", pa.list_(pa.float32())),
            ]
        )
        tables = []
        for known in self._inputs.values():
            blocks = known.blocks()
            count = len(blocks)
            sizes = [min(self._block, known.channels - start) for start, _ in blocks]
            columns = [
                [known.name] * count,
                [known.tensors] * count,
                [0] * count,
                [known.rows] * count,
                [known.channels] * count,
                [start for start, _ in blocks],
                sizes,
                [triangle for _, triangle in blocks],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            tables.append(pa.Table.from_arrays(arrays, schema=schema))
        return tables
