"""How far a job is: as a fraction, told to a callback and shown by a bar."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import ConfigurationError
from .log import log

# How often a job calls, so that the bar moves and no call of a callback comes much later than it is due.
TICK_S = 0.1


class Progress(NamedTuple):
    """How far a job is. A callback is given the first two, and those of the others that it takes."""

    progress: float
    message: str
    stage: str
    tensor: str
    done: int
    total: int


class Fractions:
    """Makes one fraction, which only grows, of the stages of a job.

    Measuring and calibrating, where they happen, are a tenth each, and quantizing all from there to 0.9. How often
    parts are quantized again is not known before: each time takes half of what is left.

    Example:
        >>> fractions = Fractions()
        >>> [fractions.at(*event) for event in [("measuring", 0, 10), ("quantizing", 5, 10), ("requantizing", 10, 10)]]
        [0.0, 0.5, 0.95]
    """

    def __init__(self) -> None:
        self._stage = ""
        self._done = 0
        self._total = 0
        self._span = (0.0, 0.0)
        self._last = 0.0

    def at(self, stage: str, done: int, total: int) -> float:
        """The fraction of the whole job when `done` of `total` weights of a stage are done."""
        if stage != self._stage or total != self._total or done < self._done:
            self._span = self._span_of(stage)
        self._stage, self._done, self._total = stage, done, total
        start, end = self._span
        share = min(done / total, 1.0) if total else 0.0
        self._last = max(self._last, start + share * (end - start))
        return self._last

    def _span_of(self, stage: str) -> tuple[float, float]:
        if stage in ("measuring", "calibrating", "quantizing"):
            # Where the stage before it ends.
            start = min(self._span[0] if stage == self._stage else self._span[1], 0.8)
            return start, 0.9 if stage == "quantizing" else start + 0.1
        start = max(self._last, 0.9)
        return start, (start + 1.0) / 2


class Listener(ABC):
    """Is told how far a job is. An exception that it raises is logged once and does not end the job."""

    def __init__(self) -> None:
        self._has_failed = False

    def tell(self, progress: Progress) -> None:
        """Tells it how far the job is."""
        try:
            self._tell(progress)
        except Exception as error:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Logs an exception that it raised, if it is the first."""
        if not self._has_failed:
            self._has_failed = True
            message = "telling the progress of a job failed; the job goes on, and further failures are not logged"
            log(logging.ERROR, message, error=error)

    @abstractmethod
    def _tell(self, progress: Progress) -> None: ...


class Callback(Listener):
    """A function that somebody wants to be called as a job goes on.

    Its first two positional parameters get the progress, 0.0 to 1.0, and the message; parameters of these names that
    are keyword-only get them by keyword. Beyond them, it is given those of `stage`, `tensor`, `done` and `total` that
    it has a parameter for, all if it takes any keyword argument.

    Raises:
        ConfigurationError: if it is no function, or cannot be called so.

    Example:
        >>> callback = Callback(lambda progress, message, *, done: print(progress, message, done))
        >>> callback.tell(Progress(0.5, "quantizing w", "quantizing", "w", 5, 10))
        0.5 quantizing w 5
    """

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        if not callable(function):
            raise _refusal(f"is {function!r}")
        self.function = function
        self._by_position, self._by_keyword = _arguments(function)

    def call(self, progress: Progress) -> Any:
        """Calls the function, and returns what it does."""
        by_position = [getattr(progress, name) for name in self._by_position]
        return self.function(*by_position, **{name: getattr(progress, name) for name in self._by_keyword})

    def refuse_coroutines(self) -> None:
        """Raises a ConfigurationError if what it returned would have to be awaited."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise _refusal("is a coroutine function, which only AsyncArrowQuantV2 can await")

    def _tell(self, progress: Progress) -> None:
        result = self.call(progress)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError("progress_callback returned what must be awaited: use AsyncArrowQuantV2")


def _arguments(function: Callable[..., object]) -> tuple[list[str], list[str]]:
    """The names of what a callback is given by position, and by keyword."""
    wanted = ["progress", "message"]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions that are not written in Python do not tell their parameters.
        return wanted, []
    parameters = signature.parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    keyword_only = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    # What a partial gives already stays as it is.
    given = set(function.keywords) if isinstance(function, functools.partial) else set()

    by_position = [name for name in wanted if name not in keyword_only | given]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        by_position = by_position[: len(places)]
    taken = {p.name for p in places[: len(by_position)] if p.kind is not p.POSITIONAL_ONLY}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        names.update(Progress._fields)
    by_keyword = [name for name in Progress._fields if name in names - taken - given and name not in by_position]
    try:
        signature.bind(*by_position, **dict.fromkeys(by_keyword))
    except TypeError as error:
        raise _refusal(f"cannot be called with progress and message: {error}") from error
    missing = [name for name in wanted if name not in {*by_position, *by_keyword, *given}]
    if missing:
        raise _refusal(f"has no parameter for the {missing[0]}")
    return by_position, by_keyword


def _refusal(found: str) -> ConfigurationError:
    message = f"progress_callback {found}, allowed: a function of progress and message, or None"
    return ConfigurationError(message, field="progress_callback")


class Bar(Listener):
    """A bar of tqdm: on standard error, or in a notebook's cell.

    Raises:
        ImportError: if tqdm is not installed.

    Example:
        >>> bar = Bar("dream-7b-int2")
        >>> bar.tell(Progress(0.5, "quantizing w", "quantizing", "w", 5, 10))
        >>> bar.close()
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress=True shows a bar of tqdm, which is not installed: pip install tqdm") from error
        layout = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(total=1.0, desc=name, bar_format=layout)

    def close(self) -> None:
        """Leaves the bar as it is, and begins a new line."""
        try:
            self._bar.close()
        except Exception as error:
            self.failed(error)

    def _tell(self, progress: Progress) -> None:
        self._bar.n = progress.progress
        # Not the message, whose percentage is that of the stage.
        self._bar.set_postfix_str(f"{progress.stage} {progress.tensor}".rstrip(), refresh=False)
        self._bar.refresh()


class Reporter:
    """Tells listeners how far a job is: at the start and at the end always, and between them not too often.

    `tell` is told at most once every `interval_s` seconds between, `bar` as often as the job calls.

    Example:
        >>> reporter = Reporter(lambda progress: print(progress.progress, progress.message), 0.0, None)
        >>> reporter.start("planning dream-7b")
        0.0 planning dream-7b
        >>> reporter("quantizing", "lm_head", 630_000, 1_260_000, "quantizing: 50 %")
        0.45 quantizing: 50 %
        >>> reporter.finish("wrote dream-7b-int4", 1_260_000)
        1.0 wrote dream-7b-int4
    """

    def __init__(self, tell: Callable[[Progress], None] | None, interval_s: float, bar: Bar | None) -> None:
        self._tell = tell
        self._interval_s = interval_s
        self._bar = bar
        self._fractions = Fractions()
        self._next_s = 0.0

    def start(self, message: str) -> None:
        """Tells that the job begins."""
        self._report(Progress(0.0, message, "planning", "", 0, 0), is_due=True)

    def __call__(self, stage: str, tensor: str, done: int, total: int, message: str) -> None:
        """Is called by the job: `done` of `total` weights of this stage are done, as `message` says in a sentence."""
        progress = Progress(self._fractions.at(stage, done, total), message, stage, tensor, done, total)
        self._report(progress, is_due=time.monotonic() >= self._next_s)

    def finish(self, message: str, weights: int) -> None:
        """Tells that the job is done."""
        self._report(Progress(1.0, message, "done", "", weights, weights), is_due=True)

    def _report(self, progress: Progress, is_due: bool) -> None:
        if self._bar is not None:
            self._bar.tell(progress)
        if self._tell is not None and is_due:
            self._next_s = time.monotonic() + self._interval_s
            self._tell(progress)
