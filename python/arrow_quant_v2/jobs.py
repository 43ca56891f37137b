"""The jobs, as their arguments ask for them: quantize a model, and compare it with its original."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from . import _native
from .errors import ConfigurationError
from .fields import configuration
from .log import log
from .progress import TICK_S, Bar, Callback, Progress, Reporter
from .reports import Plan, QualityResult, QuantizeResult
from .results import plan_result, quality_result, quantize_result

MODES = ("diffusion", "base")


class ArrowTable(Protocol):
    """An object that exports an Arrow table or stream, such as a ``pyarrow.Table`` or a ``polars.DataFrame``."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


# What the inputs of a model's layers were: a file, or a table in memory.
CalibrationTable: TypeAlias = str | os.PathLike[str] | ArrowTable

# How to quantize: a configuration, or a dict of its fields.
Config: TypeAlias = _native.DiffusionQuantConfig | Mapping[str, Any]

# Told how far work is; None if nobody is to be told.
Tell: TypeAlias = Callable[[Progress], None] | None

_Outcome = TypeVar("_Outcome", covariant=True)


class Work(Protocol[_Outcome]):
    """Work that can be done on any thread, and cancelled from another."""

    @property
    def callback(self) -> Callback | None:
        """Whom the user wants to be told."""

    def run(self, tell: Tell, cancellation: _native.Cancellation | None = None) -> _Outcome:
        """Does the work, and calls `tell` on this thread."""


class Task(Generic[_Outcome]):
    """Work that tells nobody how far it is."""

    callback: Callback | None = None

    def __init__(self, function: Callable[[_native.Cancellation | None], _Outcome]) -> None:
        self._function = function

    def run(self, tell: Tell, cancellation: _native.Cancellation | None = None) -> _Outcome:
        """Calls the function."""
        return self._function(cancellation)


class Query:
    """A query whose rows are a model.

    Raises:
        ConfigurationError: if an argument is not allowed; its `field` is the argument's name.
    """

    def __init__(self, sql: str, connection: _native.Connection | None) -> None:
        if not isinstance(sql, str):
            raise ConfigurationError(f"query is {sql!r}, allowed: SQL, as str", field="query")
        if connection is not None and not isinstance(connection, _native.Connection):
            message = f"connection is of type {type(connection).__name__}, allowed: a Connection, or None"
            raise ConfigurationError(message, field="connection")
        self.sql = sql
        self.connection = connection


class QuantizeJob:
    """A job that quantizes a model. When it is made its arguments are checked, and nothing else is done.

    Raises:
        ConfigurationError: if an argument is not allowed; its `field` is the argument's name.

    Example:
        >>> job = QuantizeJob("diffusion", "dream-7b/", "dream-7b-int4/", None, None)
        >>> result = job.run(None)
    """

    def __init__(
        self,
        mode: str,
        model_path: str | os.PathLike[str] | Query,
        output_path: str | os.PathLike[str],
        config: Config | None,
        progress_callback: Callable[..., object] | None,
        fields: Mapping[str, Any] | None = None,
        *,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
    ) -> None:
        self.callback = None if progress_callback is None else Callback(progress_callback)
        self._model = model_path if isinstance(model_path, Query) else checked_path(model_path, "model_path")
        self._output_path = checked_path(output_path, "output_path")
        self._plan = None if plan is None else checked_path(plan, "plan")
        self._calibration = _calibration(calibration)
        self._config = _config(config, fields or {}, mode, calibration is not None)
        self._progress = _flag(progress, "progress")
        self._interval_s = _interval(progress_interval_s)
        self._resume = _flag(resume, "resume")
        self._overwrite = _flag(overwrite, "overwrite")

    def run(self, tell: Tell, cancellation: _native.Cancellation | None = None) -> QuantizeResult:
        """Runs the job, and returns its result. Calls `tell`, on this thread."""
        bar = Bar(os.path.basename(os.path.normpath(self._output_path))) if self._progress else None
        reporter = Reporter(tell, self._interval_s, bar)
        try:
            report = self._report(reporter, tell is None and bar is None, cancellation)
            result = quantize_result(report, self._output_path, self._config.bit_width)
            reporter.finish(_summary(result), report["weights"])
        except (KeyboardInterrupt, _native.Cancelled):
            left = _native.unfinished_run(self._output_path)
            if left is not None:
                message = "interrupted; the finished parts are in %s: continue with resume=True, or remove it"
                log(logging.WARNING, message, left)
            raise
        finally:
            if bar is not None:
                bar.close()
        return result

    def _report(
        self, reporter: Reporter, is_silent: bool, cancellation: _native.Cancellation | None
    ) -> dict[str, Any]:
        """What the engine says of the job when it has done it."""
        keywords: dict[str, Any] = {
            "plan": self._plan,
            "calibration": self._calibration,
            "resume": self._resume,
            "overwrite": self._overwrite,
            "on_progress": None if is_silent else reporter,
            "progress_interval_s": min(self._interval_s, TICK_S),
            "cancellation": cancellation,
        }
        if isinstance(self._model, Query):
            reporter.start("running the query")
            sql, connection = self._model.sql, self._model.connection
            return _native.quantize_query(sql, self._output_path, self._config, connection=connection, **keywords)
        reporter.start(f"planning {self._model}")
        return _native.quantize_model(self._model, self._output_path, self._config, **keywords)


class PlanJob:
    """A job that plans. When it is made its arguments are checked, and nothing else is done.

    Raises:
        ConfigurationError: if an argument is not allowed; its `field` is the argument's name.
    """

    def __init__(
        self,
        mode: str,
        model_path: str | os.PathLike[str],
        config: Config | None,
        progress_callback: Callable[..., object] | None,
        fields: Mapping[str, Any],
        *,
        output: str | os.PathLike[str] | None,
        calibration: CalibrationTable | None,
        progress: bool,
        progress_interval_s: float,
    ) -> None:
        self.callback = None if progress_callback is None else Callback(progress_callback)
        self._model = checked_path(model_path, "model_path")
        self._output = None if output is None else _table_path(output)
        self._calibration = _calibration(calibration)
        self._config = _config(config, fields, mode, calibration is not None)
        self._progress = _flag(progress, "progress")
        self._interval_s = _interval(progress_interval_s)

    def run(self, tell: Tell, cancellation: _native.Cancellation | None = None) -> Plan:
        """Plans, and returns the plan. Calls `tell`, on this thread."""
        bar = Bar(os.path.basename(os.path.normpath(self._model))) if self._progress else None
        reporter = Reporter(tell, self._interval_s, bar)
        try:
            reporter.start(f"planning {self._model}")
            report = _native.plan_model(
                self._model,
                self._config,
                output=self._output,
                calibration=self._calibration,
                on_progress=None if tell is None and bar is None else reporter,
                progress_interval_s=min(self._interval_s, TICK_S),
                cancellation=cancellation,
            )
            result = plan_result(report)
            ratio = result["compression_ratio"]
            reporter.finish(f"planned {self._model}: {ratio:.1f} times smaller", result["weights"])
        finally:
            if bar is not None:
                bar.close()
        return result


def validation(
    original_path: str | os.PathLike[str],
    quantized_path: str | os.PathLike[str],
    min_accuracy: float | None,
    calibration: CalibrationTable | None,
) -> Task[QualityResult]:
    """The work that compares a quantized model with its original. Its arguments are checked."""
    original = checked_path(original_path, "original_path")
    quantized = checked_path(quantized_path, "quantized_path")
    if min_accuracy is not None and not (_is_number(min_accuracy) and 0 <= min_accuracy <= 1):
        message = f"min_accuracy is {min_accuracy!r}, allowed: 0.0 to 1.0, or None for that of the quantized model"
        raise ConfigurationError(message, field="min_accuracy")
    table = _calibration(calibration)

    def compare(cancellation: _native.Cancellation | None) -> QualityResult:
        report = _native.validate_model(original, quantized, calibration=table, cancellation=cancellation)
        return quality_result(report, quantized, None if min_accuracy is None else float(min_accuracy))

    return Task(compare)


def exporting(
    quantized_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    fields: Mapping[str, Any],
    overwrite: bool,
) -> Task[QuantizeResult]:
    """The work that writes a quantized model for another program. Its arguments are checked."""
    quantized = checked_path(quantized_path, "quantized_path")
    output = checked_path(output_path, "output_path")
    config = configuration(None, {field: value for field, value in fields.items() if value is not None})
    replaces = _flag(overwrite, "overwrite")

    def export(cancellation: _native.Cancellation | None) -> QuantizeResult:
        report = _native.export_model(quantized, output, config, overwrite=replaces, cancellation=cancellation)
        return quantize_result(report, output, report["settings"]["bit_width"])

    return Task(export)


def checked_mode(mode: str) -> str:
    """A mode, if there is such a one."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ConfigurationError(f"mode is {mode!r}, allowed: diffusion or base", field="mode")
    return mode


def refuse_base(mode: str) -> None:
    """Raises a ConfigurationError in the mode of models that are no diffusion models."""
    if mode == "base":
        message = "mode is 'base', allowed for a diffusion model: diffusion; for other models there is quantize_model"
        raise ConfigurationError(message, field="mode")


def _config(
    config: Config | None, fields: Mapping[str, Any], mode: str, is_calibrated: bool = False
) -> _native.DiffusionQuantConfig:
    """The configuration of a job alone: what is changed after it began is not meant for it."""
    own = configuration(config, fields)
    if mode == "base":
        own.enable_time_aware = own.enable_time_aware and is_calibrated
        own.enable_spatial = False
    return own


def _table_path(output: str | os.PathLike[str]) -> str:
    """The path of a plan, whose ending tells its format."""
    path = checked_path(output, "output")
    if not path.lower().endswith((".parquet", ".csv")):
        raise ConfigurationError(f"output is {path!r}, allowed: a name that ends with .parquet or .csv", field="output")
    return path


def _calibration(calibration: CalibrationTable | None) -> str | ArrowTable | None:
    """A calibration table as it is given to the engine: a path as text, or an Arrow table, which is not read yet."""
    if calibration is None:
        return None
    if isinstance(calibration, (str, os.PathLike)):
        return os.fsdecode(calibration)
    if isinstance(calibration, type) or not hasattr(calibration, "__arrow_c_stream__"):
        allowed = "a path, as str or os.PathLike, an Arrow table, such as a pyarrow.Table, or None"
        message = f"calibration is of type {type(calibration).__name__}, allowed: {allowed}"
        raise ConfigurationError(message, field="calibration")
    return calibration


def checked_path(path: str | os.PathLike[str], argument: str) -> str:
    """A path as text, if it is one."""
    if not isinstance(path, (str, os.PathLike)):
        # Shortened: it may be a whole plan, or a table.
        message = f"{argument} is {reprlib.repr(path)}, allowed: a path, as str or os.PathLike"
        raise ConfigurationError(message, field=argument)
    return os.fsdecode(path)


def _flag(value: bool, argument: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{argument} is {value!r}, allowed: True or False", field=argument)
    return value


def _interval(seconds: float) -> float:
    if not (_is_number(seconds) and seconds >= 0):
        message = f"progress_interval_s is {seconds!r}, allowed: a number of seconds, 0 or more"
        raise ConfigurationError(message, field="progress_interval_s")
    return float(seconds)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _summary(result: QuantizeResult) -> str:
    return (
        f"wrote {result['quantized_path']}: {result['compression_ratio']:.1f} times smaller, "
        f"cosine similarity {result['cosine_similarity']:.6f}"
    )
