"""The fields of a configuration as keywords of functions."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from ._native import FIELDS, DiffusionQuantConfig
from .errors import ConfigurationError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ConfigFields(TypedDict, total=False):
    """The fields of a `DiffusionQuantConfig`, for ``quantize_model(…, bit_width=4)`` and for dicts as configuration.

    Example:
        >>> from arrow_quant_v2 import ConfigFields, plan
        >>> small: ConfigFields = {"bit_width": 2, "group_size": 256}
        >>> plan("dream-7b/", small)["tensors"][1]["bits"]
        2
    """

    deployment_profile: str
    modality: str | None
    variant: str | None
    format: str | None
    architecture: str | None
    pre_tokenizer: str | None
    bit_width: int
    type: str
    no_fallback: bool
    group_size: int
    scheme: str
    method: str
    min_accuracy: float
    min_sqnr_db: float | None
    fail_fast: bool
    tensors: str | None
    skip_sensitive_layers: bool
    sensitive_layer_names: Sequence[str]
    sensitive_layer_patterns: Sequence[str]
    layer_bit_widths: Mapping[str, int | str]
    enable_mixed_precision: bool
    target_model_size_mb: float | None
    target_bpw: float | None
    enable_time_aware: bool
    num_time_groups: int
    time_group_boundaries: str
    calibration_samples: int
    enable_spatial: bool
    num_threads: int
    enable_streaming: bool
    max_memory_limit_mb: int | None


# Two names of the same: what fields say with one of them replaces what a configuration says with the other.
_TYPE = frozenset({"bit_width", "type"})


def configuration(
    config: DiffusionQuantConfig | Mapping[str, Any] | None, fields: Mapping[str, Any]
) -> DiffusionQuantConfig:
    """A configuration of a job's own: fields over a configuration, over the profile that is named, or ``"local"``.

    Raises:
        ConfigurationError: for a name, type or value that is not allowed; its `field` says which.

    Example:
        >>> configuration({"deployment_profile": "edge"}, {"bit_width": 8})
        DiffusionQuantConfig(deployment_profile='edge', bit_width=8)
    """
    if config is None or isinstance(config, Mapping):
        replaced = _TYPE if _TYPE & fields.keys() else frozenset()
        every = {**{name: value for name, value in (config or {}).items() if name not in replaced}, **fields}
        wrong = next((name for name in every if not isinstance(name, str)), None)
        if wrong is not None:
            raise ConfigurationError(f"config has the name {wrong!r}, allowed: names of fields", field="config")
        return DiffusionQuantConfig(**every)
    if not isinstance(config, DiffusionQuantConfig):
        message = f"config is {config!r}, allowed: a DiffusionQuantConfig, a dict of its fields, or None"
        raise ConfigurationError(message, field="config")
    if "deployment_profile" in fields:
        message = "deployment_profile is given beside a config, which has the values of its profile: give one of them"
        raise ConfigurationError(message, field="deployment_profile")
    own = copy.copy(config)
    for name, value in fields.items():
        if name not in FIELDS:
            # It says which name is nearest.
            DiffusionQuantConfig(**{name: value})
        setattr(own, name, value)
    if fields.keys() >= _TYPE:
        # In whatever order they were given. It says so if they contradict each other.
        own.type = DiffusionQuantConfig(bit_width=fields["bit_width"], type=fields["type"]).type
    own.validate()
    return own


def _written(annotation: Any) -> str:
    """A type as it stands in the code."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def _parameters() -> tuple[inspect.Parameter, ...]:
    """The fields as keywords, with the defaults of the profile ``"local"``."""
    defaults, types = DiffusionQuantConfig(), ConfigFields.__annotations__

    def parameter(name: str) -> inspect.Parameter:
        default = getattr(defaults, name)
        # A read-only view has no short text.
        default = dict(default) if isinstance(default, Mapping) else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_written(types[name]))

    return tuple(map(parameter, FIELDS))


_PARAMETERS = _parameters()


def takes_fields(function: _Function) -> _Function:
    """Has `inspect.signature`, and so editors and ``help``, show the fields that a function takes as ``**fields``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=[*own, *_PARAMETERS])  # type: ignore[attr-defined]
    return function


# The class takes its fields in Rust, where keywords have no names.
DiffusionQuantConfig.__signature__ = inspect.Signature(list(_PARAMETERS))  # type: ignore[attr-defined]
