"""What jobs return: their reports in the words of this package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast, overload

from . import _native
from .errors import MetadataError
from .notebook import ShownDict, rows_html
from .reports import Fallback, Inspection, Kept, ModelReport, Plan, QualityResult, QuantizeResult


class TensorTable:
    """What became of each tensor: a sequence of dicts, and an Arrow table with a row for each.

    Any library that reads the Arrow PyCapsule interface takes it as a table: ``pyarrow.table(tensors)``,
    ``polars.DataFrame(tensors)``, ``Connection.register("tensors", tensors)``.

    Example:
        >>> result = ArrowQuantV2().quantize_diffusion_model("dream-7b/", "dream-7b-int4/")
        >>> result["tensors"][0]["bits"]
        4
        >>> result["tensors"].to_pandas().groupby("bits")["bytes"].sum()
    """

    # Not a collections.abc.Sequence: polars makes columns of the dicts of one, before it asks for Arrow data.

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = list(rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> TensorTable: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | TensorTable:
        if isinstance(index, slice):
            return TensorTable(self._rows[index])
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorTable):
            return NotImplemented
        return self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TensorTable({self._rows!r})"

    def _repr_html_(self) -> str:
        return rows_html(self._rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table().__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._table().__arrow_c_schema__()

    def to_pyarrow(self) -> Any:
        """A ``pyarrow.Table``; needs pyarrow."""
        return self._table().to_pyarrow()

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; needs pandas and pyarrow."""
        return self._table().to_pandas()

    def to_polars(self) -> Any:
        """A ``polars.DataFrame``; needs polars."""
        return self._table().to_polars()

    def _table(self) -> _native.Table:
        # It has the infinite ones by the same rule.
        rows = [{**row, "sqnr_db": None} if row.get("sqnr_db") == math.inf else row for row in self._rows]
        return _native.to_table(rows)


def full_name(tensor: dict[str, Any]) -> str:
    """A tensor's name, with its component before it in a pipeline."""
    return f"{tensor['component']}/{tensor['tensor']}" if tensor["component"] else tensor["tensor"]


def quantize_result(report: dict[str, Any], quantized_path: str, bit_width: int) -> QuantizeResult:
    """The result of a job that quantized a model. If nothing was lost, cosine similarity is 1 and SQNR infinite."""
    tensors = [_with_infinity(tensor) for tensor in report["tensors"]]
    fallbacks: list[Fallback] = [
        {"tensor": full_name(tensor), "bits": tensor["bits"], "attempts": tensor["fallbacks"]}
        for tensor in tensors
        if tensor.get("fallbacks")
    ]
    kept: list[Kept] = [
        {"tensor": full_name(tensor), "because": tensor["because"]} for tensor in tensors if tensor["bits"] is None
    ]
    result: QuantizeResult = {
        "quantized_path": quantized_path,
        "compression_ratio": report["compression_ratio"],
        "cosine_similarity": _or_else(report["cosine_similarity"], 1.0),
        "sqnr_db": _or_else(report["sqnr_db"], math.inf),
        "model_size_mb": report["stored_bytes"] / 1e6,
        "bits_per_weight": report["bits_per_weight"],
        "modality": report["modality"],
        "bit_width": bit_width,
        "quantization_time_s": report["quantization_time_s"],
        "fallbacks": fallbacks,
        "kept": kept,
        "tensors": TensorTable(tensors),
        "time_aware": report["time_aware"],
        "reason": report["reason"],
        "layers": report["layers"],
        "notes": report["notes"],
        "resumed_parts": report["resumed_parts"],
    }
    return cast(QuantizeResult, ShownDict(result))


def plan_result(report: dict[str, Any]) -> Plan:
    """What a job would do."""
    return cast(Plan, ShownDict(report))


def inspection(report: dict[str, Any]) -> Inspection:
    """A model's tensors."""
    return cast(Inspection, ShownDict(report))


def model_report(report: dict[str, Any]) -> ModelReport:
    """What a quantized model says of itself."""
    return cast(ModelReport, ShownDict(report))


def quality_result(report: dict[str, Any], quantized_path: str, min_accuracy: float | None) -> QualityResult:
    """The result of a comparison: of each quantized tensor, and whether all are as good as they shall be.

    Raises:
        MetadataError: if no floor is given, and none was recorded with the quantized model.
    """
    quantized = [tensor for tensor in report["tensors"] if tensor["bits"] is not None]
    floor = report["min_accuracy"] if min_accuracy is None else min_accuracy
    if floor is None:
        message = f"{quantized_path}: no min_accuracy is recorded with the model: give one"
        raise MetadataError(message, path=quantized_path)
    has_lost_all = any(_has_lost_all(tensor) for tensor in quantized)
    accuracies = {full_name(tensor): _accuracy(tensor) for tensor in quantized}
    result: QualityResult = {
        "cosine_similarity": _or_else(report["cosine_similarity"], 0.0 if has_lost_all else 1.0),
        "sqnr_db": _or_else(report["sqnr_db"], math.inf),
        "compression_ratio": report["compression_ratio"],
        "model_size_mb": report["model_size_mb"],
        "passed": not has_lost_all and all(accuracy >= floor for accuracy in accuracies.values()),
        "per_layer_accuracy": accuracies,
        "layers": report["layers"],
    }
    return cast(QualityResult, ShownDict(result))


def _with_infinity(tensor: dict[str, Any]) -> dict[str, Any]:
    """A tensor's report with an infinite SQNR if nothing was lost, for which JSON has no number."""
    is_lossless = tensor["bits"] is not None and tensor["sqnr_db"] is None and tensor["max_abs_error"] == 0
    return {**tensor, "sqnr_db": math.inf} if is_lossless else tensor


def _accuracy(tensor: dict[str, Any]) -> float:
    return _or_else(tensor["cosine_similarity"], 0.0 if _has_lost_all(tensor) else 1.0)


def _has_lost_all(tensor: dict[str, Any]) -> bool:
    """Whether a tensor became all zeros, and was not."""
    return tensor["cosine_similarity"] is None and bool(tensor["max_abs_error"])


def _or_else(figure: float | None, otherwise: float) -> float:
    return otherwise if figure is None else figure
