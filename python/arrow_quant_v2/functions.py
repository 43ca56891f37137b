"""The functions for sessions of the stock ``datafusion`` package, version 55.

:func:`register_all` registers them all; each is an attribute of this module too, to be registered alone or used in
expressions: ``datafusion.udf`` takes the scalar functions, ``datafusion.udaf`` the aggregates.

A session that reads several fields of what ``quantize(...)`` returns should be told::

    SET datafusion.optimizer.enable_leaf_expression_pushdown = false

Otherwise DataFusion's optimizer evaluates a function that returns a struct once for each field that is read, here and in
subqueries. Sessions of :func:`arrow_quant_v2.connect` have it so; those of others are not changed.

Example:
    >>> import datafusion
    >>> from arrow_quant_v2 import functions
    >>> ctx = datafusion.SessionContext()
    >>> ctx.register_udf(datafusion.udf(functions.max_abs_error))
    >>> ctx.sql("SELECT max_abs_error([1.0, 2.0, 3.0], [1.5, 2.0, 2.75]) AS error").to_pydict()
    {'error': [0.5]}
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import _native
from .errors import ConfigurationError

if TYPE_CHECKING:
    import datafusion

__all__ = [
    "cosine_similarity",
    "cosine_similarity_agg",
    "dequantize",
    "max_abs_error",
    "max_abs_error_agg",
    "quantize",
    "register_all",
    "scale_channels",
    "sqnr",
    "sqnr_agg",
    "tensor_stats",
    "tensor_stats_agg",
    "to_floats",
    "weighted_sum",
]

_SCALAR = {function.name: function for function in _native.scalar_functions()}
_AGGREGATE = {function.name: function for function in _native.aggregate_functions()}

quantize = _SCALAR["quantize"]
"""``quantize(weights, bits, group_size [, scheme] [, method] [, importance [, smoothing]])``: weights as a
quantized value."""

dequantize = _SCALAR["dequantize"]
"""``dequantize(quantized)``: the weights that a quantized value stands for."""

scale_channels = _SCALAR["scale_channels"]
"""``scale_channels(weights, factors)``: element j of each row times ``factors[j]``."""

to_floats = _SCALAR["to_floats"]
"""``to_floats(weights)``: the elements of a tensor value as a list of 32-bit floats."""

weighted_sum = _SCALAR["weighted_sum"]
"""``weighted_sum(a, x, b, y)``: the sum a·x + b·y of two tensors, element by element, in the dtype of ``x``."""

cosine_similarity = _SCALAR["cosine_similarity"]
"""``cosine_similarity(a, b)`` or ``cosine_similarity(quantized)``."""

sqnr = _SCALAR["sqnr"]
"""``sqnr(a, b)`` or ``sqnr(quantized)``: the signal-to-quantization-noise ratio in dB."""

max_abs_error = _SCALAR["max_abs_error"]
"""``max_abs_error(a, b)`` or ``max_abs_error(quantized)``."""

tensor_stats = _SCALAR["tensor_stats"]
"""``tensor_stats(weights)``: counts and moments of a tensor's elements."""

cosine_similarity_agg = _AGGREGATE["cosine_similarity_agg"]
"""``cosine_similarity_agg(a, b)`` or ``cosine_similarity_agg(quantized)``: of all rows of a group together."""

sqnr_agg = _AGGREGATE["sqnr_agg"]
"""``sqnr_agg(a, b)`` or ``sqnr_agg(quantized)``: in dB, of all rows of a group together."""

max_abs_error_agg = _AGGREGATE["max_abs_error_agg"]
"""``max_abs_error_agg(a, b)`` or ``max_abs_error_agg(quantized)``: over all rows of a group."""

tensor_stats_agg = _AGGREGATE["tensor_stats_agg"]
"""``tensor_stats_agg(weights)``: counts and moments over all rows of a group."""

# Functions cross between two builds of DataFusion, whose layouts are the same within a major version only. A function
# carries no version that the other side could check.
_DATAFUSION = 55
_INSTALL = f'pip install "datafusion=={_DATAFUSION}.*"'


def refuse_other_versions() -> None:
    """Raises a ConfigurationError if a ``datafusion`` of another major version is loaded. Nothing is imported."""
    datafusion = sys.modules.get("datafusion")
    if datafusion is None:
        return
    version = getattr(datafusion, "__version__", "of no version")
    if version.split(".")[0] != str(_DATAFUSION):
        message = (
            f"datafusion is {version}, allowed: {_DATAFUSION}, for which arrow_quant_v2 "
            f"{_native.__version__} was built: {_INSTALL}"
        )
        raise ConfigurationError(message, field="ctx")


def register_all(ctx: datafusion.SessionContext) -> None:
    """Registers every function of this module in a session of the stock ``datafusion`` package.

    No setting of the session is changed; the module's documentation names one to change where several fields of
    ``quantize(...)`` are read.

    Args:
        ctx: the session.

    Raises:
        ConfigurationError: if the installed ``datafusion`` is not of version 55, or ``ctx`` is no ``SessionContext``.
        ImportError: if ``datafusion`` is not installed.

    Example:
        >>> import arrow_quant_v2, datafusion
        >>> ctx = datafusion.SessionContext()
        >>> arrow_quant_v2.register_all(ctx)
        >>> ctx.sql("SELECT to_floats(dequantize(quantize([0.0, 1.0, 2.0, 3.0], 2, 32))) AS w").to_pydict()
        {'w': [[0.0, 1.0, 2.0, 3.0]]}
    """
    try:
        import datafusion
    except ModuleNotFoundError as error:
        if error.name != "datafusion":
            raise
        raise ImportError(f"datafusion is not installed: {_INSTALL}", name="datafusion") from error
    refuse_other_versions()
    if not isinstance(ctx, datafusion.SessionContext):
        raise ConfigurationError(f"ctx is a {type(ctx).__name__}, allowed: a datafusion.SessionContext", field="ctx")
    for scalar in _SCALAR.values():
        ctx.register_udf(datafusion.udf(scalar))
    for aggregate in _AGGREGATE.values():
        ctx.register_udaf(datafusion.udaf(aggregate))
