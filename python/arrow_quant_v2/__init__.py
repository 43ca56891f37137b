"""Quantize model weights: safetensors as Arrow tables, SIMD kernels, SQL.

Example:
    >>> from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig
    >>> quantizer = ArrowQuantV2(mode="diffusion")
    >>> result = quantizer.quantize_diffusion_model("dream-7b/", "dream-7b-int4/", DiffusionQuantConfig())
    >>> result["compression_ratio"] > 3
    True
"""

from __future__ import annotations

from . import calibration, functions
from ._native import (
    ArrowArray,
    Connection,
    DiffusionQuantConfig,
    QuantizedTensor,
    Result,
    Table,
    __version__,
    connect,
)
from .aio import AsyncArrowQuantV2
from .arrays import QuantizedTensors
from .errors import (
    ArrowQuantError,
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    OutputExistsError,
    QuantizationError,
    ShapeMismatchError,
    ValidationError,
)
from .fields import ConfigFields
from .functions import register_all
from .loading import LazyTensor, QuantizedModel, load_quantized, load_state_dict
from .quantizer import ArrowQuantV2
from .reports import Inspection, ModelReport, Plan, QualityResult, QuantizeResult
from .results import TensorTable

_QUANTIZER = ArrowQuantV2()

quantize_model = _QUANTIZER.quantize_model
export = _QUANTIZER.export
plan = _QUANTIZER.plan
inspect = _QUANTIZER.inspect
report = _QUANTIZER.report

__all__ = [
    "ArrowArray",
    "ArrowQuantError",
    "ArrowQuantV2",
    "AsyncArrowQuantV2",
    "ConfigFields",
    "ConfigurationError",
    "Connection",
    "DiffusionQuantConfig",
    "Inspection",
    "LazyTensor",
    "MetadataError",
    "ModelNotFoundError",
    "ModelReport",
    "OutputExistsError",
    "Plan",
    "QualityResult",
    "QuantizationError",
    "QuantizeResult",
    "QuantizedModel",
    "QuantizedTensor",
    "QuantizedTensors",
    "Result",
    "ShapeMismatchError",
    "Table",
    "TensorTable",
    "ValidationError",
    "__version__",
    "calibration",
    "connect",
    "export",
    "functions",
    "inspect",
    "load_quantized",
    "load_state_dict",
    "plan",
    "quantize_model",
    "register_all",
    "report",
]
