"""The types of what jobs return: dicts with these keys. At run time they are dicts that notebooks show as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from .results import TensorTable


class Attempt(TypedDict):
    """Bits that a tensor was quantized to before, and that were too few."""

    encoding: str
    bits: int
    group_size: int | None
    cosine_similarity: float | None
    sqnr_db: float | None


class Fallback(TypedDict):
    """A tensor that was below the floor."""

    tensor: str
    bits: int | None
    attempts: list[Attempt]


class Kept(TypedDict):
    """A tensor that stayed as it is, and why."""

    tensor: str
    because: str


class LayerReport(TypedDict):
    """What became of the inputs of a layer. Figures are in dB, estimated from the calibration."""

    tensor: str
    state: str
    channels: int
    timesteps: int
    time_groups: int
    smoothing_alpha: float | None
    activation_sqnr_db: float
    worst_activation_sqnr_db: float
    clipping_gain_db: float
    time_groups_gain_db: float
    worst_time_groups_gain_db: float
    smoothing_gain_db: float
    importance_gain_db: float | None


class LayerQuality(TypedDict):
    """How good the parameters of a layer's inputs are."""

    tensor: str
    state: str
    timesteps: int
    time_groups: int
    activation_sqnr_db: float
    worst_activation_sqnr_db: float
    loss_db: float
    worst_loss_db: float
    smoothing_error: float | None
    output_sqnr_db: float
    worst_output_sqnr_db: float


class QuantizeResult(TypedDict):
    """What a job that quantized a model did; `ArrowQuantV2.quantize_model` says what each is.

    Example:
        >>> from arrow_quant_v2 import QuantizeResult, quantize_model
        >>> result: QuantizeResult = quantize_model("dream-7b/", "dream-7b-int8/", bit_width=8)
        >>> result["bit_width"]
        8
    """

    quantized_path: str
    compression_ratio: float
    cosine_similarity: float
    sqnr_db: float
    model_size_mb: float
    bits_per_weight: float
    modality: str | None
    bit_width: int
    quantization_time_s: float
    fallbacks: list[Fallback]
    kept: list[Kept]
    tensors: TensorTable
    time_aware: bool
    reason: str | None
    layers: list[LayerReport]
    notes: list[str]
    resumed_parts: int


class QualityResult(TypedDict):
    """How like its original a quantized model is; `ArrowQuantV2.validate_quality` says what each is.

    Example:
        >>> from arrow_quant_v2 import ArrowQuantV2, QualityResult, quantize_model
        >>> path = quantize_model("dream-7b/", "dream-7b-int8/", bit_width=8)["quantized_path"]
        >>> quality: QualityResult = ArrowQuantV2().validate_quality("dream-7b/", path)
        >>> quality["passed"]
        True
    """

    cosine_similarity: float
    sqnr_db: float
    compression_ratio: float
    model_size_mb: float
    passed: bool
    per_layer_accuracy: dict[str, float]
    layers: list[LayerQuality]


class PlannedTensor(TypedDict):
    """What one tensor is to become. Quality is estimated from a sample of its weights."""

    component: str
    tensor: str
    encoding: str
    bits: int | None
    group_size: int | None
    because: str
    reason: dict[str, Any]
    same_as: str | None
    dtype: str
    shape: list[int]
    elements: int
    bytes: int
    cosine_similarity: float | None
    sqnr_db: float | None


class Plan(TypedDict):
    """What a job would do: what ``arrow-quant plan --json`` prints.

    Example:
        >>> from arrow_quant_v2 import Plan, plan
        >>> planned: Plan = plan("dream-7b/", bit_width=8)
        >>> planned["weights"]
        1257988
    """

    model: str
    modality: str | None
    tensors: list[PlannedTensor]
    weights: int
    original_bytes: int
    stored_bytes: int
    bits_per_weight: float
    compression_ratio: float
    sqnr_db: float | None
    squared_error: float
    parts: int
    estimated_time_s: float
    estimated_memory_mb: int
    notes: list[str]
    layers: list[LayerReport]


class InspectedTensor(TypedDict):
    """A tensor, from its header alone."""

    component: str
    tensor: str
    dtype: str
    shape: list[int]
    elements: int
    bytes: int


class Inspection(TypedDict):
    """A model's tensors and their totals: what ``arrow-quant inspect --json`` prints.

    Example:
        >>> from arrow_quant_v2 import Inspection, inspect
        >>> found: Inspection = inspect("dream-7b/")
        >>> found["tensors"][0]["dtype"]
        'BF16'
    """

    model: str
    weights: int
    bytes: int
    files: list[str]
    left_out: list[str]
    quantized_by: str | None
    tensors: list[InspectedTensor]


class ModelReport(TypedDict):
    """What a quantized model says of itself: what ``arrow-quant report --json`` prints.

    Example:
        >>> from arrow_quant_v2 import ModelReport, quantize_model, report
        >>> path = quantize_model("dream-7b/", "dream-7b-int8/", bit_width=8)["quantized_path"]
        >>> said: ModelReport = report(path)
        >>> said["settings"]["bit_width"]
        8
    """

    name: str
    created_by: str
    settings: dict[str, Any]
    modality: str | None
    notes: list[str]
    tensors: list[dict[str, Any]]
    time_aware: bool
    reason: str | None
    layers: list[LayerReport]
    weights: int
    original_bytes: int
    stored_bytes: int
    bits_per_weight: float
    compression_ratio: float
    cosine_similarity: float | None
    sqnr_db: float | None
    squared_error: float
