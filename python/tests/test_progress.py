"""What a job tells of its progress: fractions, callbacks of every kind, the bar."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import interrupt_job

from arrow_quant_v2 import ArrowQuantV2, ConfigurationError, DiffusionQuantConfig
from arrow_quant_v2.progress import Callback, Fractions, Progress, Reporter

HALF = Progress(0.5, "half", "quantizing", "w", 5, 10)
DETAILS = {"stage": "quantizing", "tensor": "w", "done": 5, "total": 10}


class Method:
    """Callbacks that are no plain functions."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, progress: float, message: str) -> None:
        self.calls.append((progress, message))

    def method(self, progress: float, message: str, *, tensor: str) -> None:
        self.calls.append((progress, message, tensor))


class Asynchronous:
    """A callable object whose calls are to be awaited."""

    async def __call__(self, progress: float, message: str) -> None:
        pass


class Untold:
    """A callable object that does not tell its parameters, as many that are written in C."""

    __signature__ = "unknown"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: object, **kwargs: object) -> None:
        self.calls.append((args, kwargs))


async def asynchronous(progress: float, message: str) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda progress, message: (progress, message), (0.5, "half")),
        (lambda p, m: (p, m), (0.5, "half")),
        (lambda p, m, /: (p, m), (0.5, "half")),
        (lambda p, m, verbose=True: (p, m, verbose), (0.5, "half", True)),
        (lambda *args: args, (0.5, "half")),
        (lambda p, *args: (p, args), (0.5, ("half",))),
        (lambda *, progress, message: (progress, message), (0.5, "half")),
        (lambda *, message, progress: (progress, message), (0.5, "half")),
        (lambda p, *, message: (p, message), (0.5, "half")),
        (lambda m, *, progress: (m, progress), ("half", 0.5)),
        (lambda **event: event, {"progress": 0.5, "message": "half", **DETAILS}),
        (lambda progress, **event: (progress, event), (0.5, {"message": "half", **DETAILS})),
        (lambda progress, message, **details: (progress, message, details), (0.5, "half", DETAILS)),
        (lambda *args, **details: (args, details), ((0.5, "half"), DETAILS)),
        (lambda p, m, stage: (p, m, stage), (0.5, "half", "quantizing")),
        (lambda p, m, total, done=None: (p, m, done, total), (0.5, "half", 5, 10)),
        (lambda p, m, *, tensor: (p, m, tensor), (0.5, "half", "w")),
        (lambda p, m, *args, done: (p, m, args, done), (0.5, "half", (), 5)),
        # By position they get what comes first, whatever they are called.
        (lambda done, total: (done, total), (0.5, "half")),
        (
            lambda stage, m, **details: (stage, m, details),
            (0.5, "half", {k: DETAILS[k] for k in DETAILS if k != "stage"}),
        ),
        (functools.partial(lambda name, p, m: (name, p, m), "job"), ("job", 0.5, "half")),
        (functools.partial(lambda p, m, name: (p, m, name), name="job"), (0.5, "half", "job")),
        (functools.partial(lambda p, m, tensor, done: (p, m, tensor, done), tensor="mine"), (0.5, "half", "mine", 5)),
        (functools.partial(lambda progress, message: (progress, message), message="mine"), (0.5, "mine")),
    ],
)
def test_a_callback_gets_what_it_takes(function: Any, expected: Any) -> None:
    assert Callback(function).call(HALF) == expected


def test_a_callback_may_be_any_callable(capsys: pytest.CaptureFixture[str]) -> None:
    called, untold = Method(), Untold()
    functions: list[Callable[..., object]] = [called, called.method, functools.partial(called), print, untold]
    for function in functions:
        Callback(function).tell(HALF)
    assert called.calls == [(0.5, "half"), (0.5, "half", "w"), (0.5, "half")]
    assert capsys.readouterr().out == "0.5 half\n"
    assert untold.calls == [((0.5, "half"), {})]


@pytest.mark.parametrize(
    "callback",
    [
        3,
        "print",
        lambda: None,
        lambda progress: None,
        lambda progress, *, message_: None,
        lambda progress, message, logger: None,
        lambda progress, message, *, logger: None,
        lambda message, *, stage: None,
        asynchronous,
        Asynchronous(),
        Asynchronous().__call__,
        functools.partial(asynchronous, message=""),
        functools.partial(functools.partial(Asynchronous())),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_job(callback: Any, digits_dit: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="^progress_callback .*, allowed: a function of progress and"
    ) as caught:
        ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", progress_callback=callback)
    assert caught.value.field == "progress_callback"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interval", [-1, math.nan, "5", None, True])
def test_an_interval_is_a_number_of_seconds(interval: Any, digits_dit: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="^progress_interval_s is ") as caught:
        ArrowQuantV2().quantize_model(digits_dit, tmp_path / "out", progress_interval_s=interval)
    assert caught.value.field == "progress_interval_s"


def test_fractions_go_from_stage_to_stage() -> None:
    fractions = Fractions()
    told = [
        fractions.at(*event)
        for event in [
            ("measuring", 0, 10),
            ("measuring", 5, 10),
            ("quantizing", 0, 200),
            ("quantizing", 100, 200),
            ("quantizing", 200, 200),
            ("requantizing", 0, 30),
            ("requantizing", 30, 30),
            ("requantizing", 0, 30),
            ("requantizing", 30, 30),
            ("requantizing", 10, 20),
        ]
    ]
    assert told == pytest.approx([0, 0.05, 0.1, 0.5, 0.9, 0.9, 0.95, 0.95, 0.975, 0.98125])


def test_stages_before_quantizing_are_a_tenth_each() -> None:
    fractions = Fractions()
    events = [("measuring", 10, 10), ("calibrating", 0, 20), ("calibrating", 10, 20), ("calibrating", 20, 20)]
    events += [("quantizing", 0, 100), ("quantizing", 50, 100), ("quantizing", 100, 100), ("requantizing", 5, 5)]
    assert [fractions.at(*event) for event in events] == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.2, 0.55, 0.9, 0.95])
    fractions = Fractions()
    events = [("calibrating", 0, 10), ("calibrating", 5, 10), ("quantizing", 0, 10), ("quantizing", 10, 10)]
    assert [fractions.at(*event) for event in events] == pytest.approx([0, 0.05, 0.1, 0.9])


def test_fractions_never_decrease_nor_reach_the_end() -> None:
    fractions = Fractions()
    assert fractions.at("quantizing", 90, 100) == pytest.approx(0.81)
    # Events that were left out, totals that are 0 or too small.
    events = [("quantizing", 0, 0), ("requantizing", 0, 0), ("requantizing", 5, 3), ("requantizing", 9, 9)] * 20
    told = [fractions.at(*event) for event in events]
    assert told == sorted(told)
    assert 0.81 <= told[0] and told[-1] < 1.0


def test_messages_are_those_of_the_job() -> None:
    messages: list[str] = []
    reporter = Reporter(lambda progress: messages.append(progress.message), 0, None)
    reporter.start("begun")
    reporter("quantizing", "lm_head", 12, 34, "quantizing: 35 % (12 of 34 weights), 310 weights/s")
    reporter.finish("done", 5)
    assert messages == ["begun", "quantizing: 35 % (12 of 34 weights), 310 weights/s", "done"]


def test_calls_are_as_far_apart_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("arrow_quant_v2.progress.time", SimpleNamespace(monotonic=lambda: now_s))
    told: list[tuple[float, int]] = []
    reporter = Reporter(lambda progress: told.append((now_s, progress.done)), 5.0, None)
    reporter.start("begun")
    for tick in range(121):
        now_s = 1000.0 + tick / 10
        reporter("quantizing", "w", tick, 1000, "quantizing")
    reporter.finish("done", 1000)
    assert told == [(1000.0, 0), (1005.0, 50), (1010.0, 100), (1012.0, 1000)]


@pytest.mark.parametrize("progress", [False, True])
def test_the_first_and_the_last_call_are_always_made(progress: bool, digits_dit: Path, tmp_path: Path) -> None:
    pytest.importorskip("tqdm")
    calls: list[tuple[float, str, dict[str, Any]]] = []

    def callback(progress: float, message: str, **details: Any) -> None:
        calls.append((progress, message, details))

    ArrowQuantV2().quantize_diffusion_model(
        digits_dit, tmp_path / "out", None, callback, progress=progress, progress_interval_s=math.inf
    )
    first, last = calls
    details = {"stage": "planning", "tensor": "", "done": 0, "total": 0}
    assert first == (0.0, f"planning {digits_dit}", details)
    assert last[0] == 1.0
    assert last[1].startswith(f"wrote {tmp_path / 'out'}: 3.")
    assert last[2] == {"stage": "done", "tensor": "", "done": 1_257_988, "total": 1_257_988}


def test_calls_between_say_how_far_the_job_is(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path
) -> None:
    calls: list[Progress] = []

    def callback(**event: Any) -> None:
        calls.append(Progress(**event))

    ArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config, callback, progress_interval_s=0)
    fractions = [call.progress for call in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    stages = list(dict.fromkeys(call.stage for call in calls))
    assert stages == ["planning", "quantizing", "requantizing", "done"]
    limits = {"planning": (0.0, 0.0), "quantizing": (0.0, 0.9), "requantizing": (0.9, 0.99999), "done": (1.0, 1.0)}
    tensors = {"", *(f"layers.{index}.weight" for index in range(8))}
    for call in calls:
        least, most = limits[call.stage]
        assert least <= call.progress <= most, call
        assert call.message.startswith((call.stage, "wrote "))
        assert call.tensor in tensors, call
        assert call.tensor in call.message
        assert 0 <= call.done <= call.total <= 1 << 26, call
    shutil.rmtree(tmp_path / "out")


def test_the_callback_is_called_on_the_thread_that_asked(digits_dit: Path, tmp_path: Path) -> None:
    threads = set()
    job = ArrowQuantV2().quantize_diffusion_model
    job(digits_dit, tmp_path / "out", None, lambda *_: threads.add(threading.get_ident()), progress_interval_s=0)
    assert threads == {threading.get_ident()}


def test_an_exception_is_logged_once_and_the_job_goes_on(
    digits_dit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fractions = []

    def callback(progress: float, message: str) -> None:
        fractions.append(progress)
        raise ZeroDivisionError("of the callback")

    ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", None, callback, progress_interval_s=0)
    assert (tmp_path / "out" / "arrow_quant.json").exists()
    assert len(fractions) > 1 and fractions[-1] == 1.0
    records = [
        record for record in caplog.records if record.name == "arrow_quant_v2" and record.levelno == logging.ERROR
    ]
    assert len(records) == 1
    assert "the job goes on" in records[0].getMessage()
    assert records[0].exc_info is not None and isinstance(records[0].exc_info[1], ZeroDivisionError)


@pytest.mark.filterwarnings("error")
def test_what_would_have_to_be_awaited_is_logged_as_an_error(
    digits_dit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", None, lambda p, m: asynchronous(p, m))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None and "use AsyncArrowQuantV2" in str(record.exc_info[1])


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_of_the_callback_ends_the_job(
    exception: type[BaseException], big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path
) -> None:
    calls = []

    def callback(progress: float, message: str) -> None:
        calls.append(progress)
        raise exception

    with pytest.raises(exception):
        ArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config, callback)
    assert calls == [0.0]
    assert not (tmp_path / "out").exists()


def test_a_callback_may_do_what_it_likes_with_the_package(digits_dit: Path, tiny_model: Path, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    results: list[dict[str, Any]] = []

    def callback(progress: float, message: str) -> None:
        out = tmp_path / f"inner-{len(results)}"
        results.append(quantizer.quantize_model(tiny_model, out))
        assert quantizer.validate_quality(tiny_model, out)["passed"]

    result = quantizer.quantize_diffusion_model(
        digits_dit, tmp_path / "out", None, callback, progress_interval_s=math.inf
    )
    assert len(results) == 2 and result["cosine_similarity"] > 0.99


def test_a_bar_is_shown(digits_dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    ArrowQuantV2().quantize_diffusion_model(digits_dit, f"{tmp_path}/digits-int4/", progress=True)
    shown = capsys.readouterr().err
    assert "digits-int4:   0%" in shown and "digits-int4: 100%" in shown and shown.endswith("\n")
    # One percentage, that of the whole job: none of the stage.
    assert all(line.count("%") <= 1 for line in shown.replace("\n", "\r").split("\r")), shown


def test_a_bar_ends_with_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with pytest.raises(FileNotFoundError):
        ArrowQuantV2().quantize_diffusion_model(tmp_path / "none", tmp_path / "out", progress=True)
    assert capsys.readouterr().err.endswith("\n")


def test_a_bar_that_cannot_be_shown_does_not_end_the_job(
    digits_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tqdm = pytest.importorskip("tqdm.auto").tqdm

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(tqdm, "set_postfix_str", fail)
    result = ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", progress=True)
    assert result["cosine_similarity"] > 0.99
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_without_tqdm_the_bar_is_refused_with_the_command(
    digits_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm$"):
        ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", progress=True)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_job_tells_its_progress_anew(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path
) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    interrupt_job(big_model, out, slow_config)
    fractions: list[float] = []
    slow_config.num_threads = 0
    result = quantizer.quantize_model(
        big_model, out, slow_config, lambda p, m: fractions.append(p), progress_interval_s=0.01, resume=True
    )
    assert result["resumed_parts"] > 0
    assert (fractions[0], fractions[-1]) == (0.0, 1.0) and fractions == sorted(fractions)
    shutil.rmtree(out)
