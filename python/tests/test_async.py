"""The methods that are awaited: the loop runs on, callbacks are called in its thread, cancelling ends the work."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ATTEMPTS

from arrow_quant_v2 import (
    ArrowQuantV2,
    AsyncArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    ModelNotFoundError,
    aio,
)
from arrow_quant_v2.aio import _Work
from arrow_quant_v2.progress import Callback, Progress


def no_job_is_left() -> bool:
    return all(thread.name != "arrow-quant-job" for thread in threading.enumerate())


def event(progress: float) -> Progress:
    return Progress(progress, "", "quantizing", "", 0, 0)


def test_the_results_are_those_of_the_methods_that_block(digits_dit: Path, tmp_path: Path) -> None:
    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        quantizer = AsyncArrowQuantV2()
        result = await quantizer.quantize_diffusion_model(digits_dit, tmp_path / "a")
        return result, await quantizer.validate_quality(digits_dit, tmp_path / "a", min_accuracy=0.99)

    result, quality = asyncio.run(main())
    expected = ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "b")
    ignored = {"quantized_path": "", "quantization_time_s": 0}
    assert {**result, **ignored} == {**expected, **ignored}
    blocking = ArrowQuantV2().validate_quality(digits_dit, tmp_path / "b", min_accuracy=0.99)
    assert quality.pop("per_layer_accuracy") == pytest.approx(blocking.pop("per_layer_accuracy"))
    assert quality.pop("layers") == blocking.pop("layers")
    assert quality == pytest.approx(blocking)
    assert no_job_is_left()


def test_arrays_are_quantized_and_restored() -> None:
    weights = {"w": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(16, 256)}

    async def main() -> Any:
        quantizer = AsyncArrowQuantV2()
        return await quantizer.dequantize(await quantizer.quantize(weights, bit_width=8, group_size=64))

    restored = asyncio.run(main())
    blocking = ArrowQuantV2()
    expected = blocking.dequantize(blocking.quantize(weights, bit_width=8, group_size=64))
    assert list(restored) == ["w"]
    np.testing.assert_array_equal(restored["w"], expected["w"])


def test_modes_and_arguments_are_those_of_the_methods_that_block(digits_dit: Path, tmp_path: Path) -> None:
    assert AsyncArrowQuantV2(mode="base").mode == "base"
    assert repr(AsyncArrowQuantV2()) == "AsyncArrowQuantV2(mode='diffusion')"
    with pytest.raises(ConfigurationError):
        AsyncArrowQuantV2(mode="Base")
    quantizer: Any = AsyncArrowQuantV2(mode="base")
    wrong: list[tuple[Any, type[Exception]]] = [
        (lambda: quantizer.quantize_diffusion_model(digits_dit, tmp_path / "out"), ConfigurationError),
        (lambda: quantizer.quantize_model(digits_dit, tmp_path / "out", progress_callback=3), ConfigurationError),
        (lambda: quantizer.quantize_model(digits_dit, tmp_path / "out", progress_interval_s=-1), ConfigurationError),
        (lambda: quantizer.quantize_model(tmp_path / "none", tmp_path / "out"), ModelNotFoundError),
        (lambda: quantizer.validate_quality(digits_dit, tmp_path / "none"), ModelNotFoundError),
        (lambda: quantizer.quantize({"w": np.ones((2, 32), np.float32)}, bit_width=7), ConfigurationError),
    ]

    async def refused(work: Callable[[], Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            await work()

    for work, error in wrong:
        asyncio.run(refused(work, error))
    assert os.listdir(tmp_path) == []
    assert no_job_is_left()


def test_the_loop_runs_on_during_a_job(big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    async def main() -> None:
        counter = asyncio.create_task(count())
        await AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config)
        counter.cancel()

    asyncio.run(main())
    assert turns > 20
    shutil.rmtree(tmp_path / "out")


def test_many_jobs_run_at_once(tiny_model: Path, tmp_path: Path) -> None:
    jobs = 40

    async def main() -> None:
        # Each waits until all have begun: with fewer threads than jobs, none would ever end.
        begun = 0
        all_begun = asyncio.Event()

        async def callback(progress: float, message: str) -> None:
            nonlocal begun
            begun += progress == 0.0
            if begun == jobs:
                all_begun.set()
            await all_begun.wait()

        job = AsyncArrowQuantV2().quantize_model
        await asyncio.gather(
            *(job(tiny_model, tmp_path / f"out-{index}", progress_callback=callback) for index in range(jobs))
        )

    asyncio.run(main())
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("out-")]) == jobs


class Recorder:
    """Callbacks of every kind, which record what they are told and where."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.threads: set[int] = set()

    def plain(self, progress: float, message: str, **details: Any) -> None:
        assert set(details) == {"stage", "tensor", "done", "total"}
        self.told.append(progress)
        self.threads.add(threading.get_ident())

    async def coroutine(self, progress: float, message: str, **details: Any) -> None:
        await asyncio.sleep(0)
        self.plain(progress, message, **details)

    async def keywords(self, *, progress: float, message: str, **details: Any) -> None:
        await self.coroutine(progress, message, **details)

    def future(self, progress: float, message: str, **details: Any) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.coroutine(progress, message, **details))

    async def __call__(self, progress: float, message: str, **details: Any) -> None:
        await self.coroutine(progress, message, **details)


@pytest.mark.parametrize(
    "kind",
    [
        lambda recorder: recorder.plain,
        lambda recorder: recorder.coroutine,
        lambda recorder: recorder.keywords,
        lambda recorder: recorder.future,
        lambda recorder: recorder,
        lambda recorder: functools.partial(recorder.coroutine),
        lambda recorder: functools.partial(recorder),
        lambda recorder: lambda progress, message, **details: recorder.coroutine(progress, message, **details),
    ],
)
def test_callbacks_of_every_kind_are_called_in_the_loop(
    kind: Callable[[Recorder], Any], digits_dit: Path, tmp_path: Path
) -> None:
    recorder = Recorder()
    job = AsyncArrowQuantV2().quantize_diffusion_model
    asyncio.run(job(digits_dit, tmp_path / "out", None, kind(recorder), progress_interval_s=0))
    assert recorder.threads == {threading.get_ident()}
    assert recorder.told == sorted(recorder.told)
    assert (recorder.told[0], recorder.told[-1]) == (0.0, 1.0)


def test_the_first_and_the_last_call_are_always_made(digits_dit: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    job = AsyncArrowQuantV2().quantize_diffusion_model
    asyncio.run(job(digits_dit, tmp_path / "out", None, recorder, progress_interval_s=math.inf))
    assert recorder.told == [0.0, 1.0]


def test_callbacks_see_the_context_of_the_task(tiny_model: Path, tmp_path: Path) -> None:
    request = contextvars.ContextVar("request", default="none")
    seen = set()

    async def main() -> None:
        request.set("mine")
        await AsyncArrowQuantV2().quantize_model(
            tiny_model, tmp_path / "out", None, lambda progress, message: seen.add(request.get())
        )

    asyncio.run(main())
    assert seen == {"mine"}


def test_of_what_is_told_during_a_slow_call_the_newest_is_told_next() -> None:
    async def main() -> list[float]:
        called, go_on = asyncio.Event(), threading.Event()
        told: list[float] = []

        async def callback(progress: float, message: str) -> None:
            told.append(progress)
            if len(told) == 2:
                called.set()
                # Until all that the work tells has reached the loop.
                await asyncio.to_thread(work_has_ended.wait)

        work_has_ended = threading.Event()

        def work(tell: Any, _: object) -> str:
            # Before the loop has a turn to call anything.
            for progress in (0.0, 0.1, 0.2):
                tell(event(progress))
            go_on.wait()
            for progress in (0.3, 0.4, 1.0):
                tell(event(progress))
            work_has_ended.set()
            return "value"

        task = asyncio.create_task(_Work(work, Callback(callback)).result())
        await called.wait()
        go_on.set()
        assert await task == "value"
        return told

    first, *others = asyncio.run(main())
    # The loop may have had a turn between the first of them.
    assert first == 0.0
    assert others[-1] == 1.0
    assert len(others) == 2 and others[0] in (0.1, 0.2)


def test_calls_are_made_one_at_a_time(digits_dit: Path, tmp_path: Path) -> None:
    under_way = most = calls = 0

    async def callback(progress: float, message: str) -> None:
        nonlocal under_way, most, calls
        under_way += 1
        most = max(most, under_way)
        calls += 1
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1

    job = AsyncArrowQuantV2().quantize_diffusion_model
    asyncio.run(job(digits_dit, tmp_path / "out", None, callback, progress_interval_s=0))
    assert most == 1 and calls >= 2 and under_way == 0


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_an_exception_is_logged_once_and_the_job_goes_on(
    kind: str, digits_dit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def plain(progress: float, message: str) -> None:
        told.append(progress)
        raise ZeroDivisionError("of the callback")

    async def coroutine(progress: float, message: str) -> None:
        await asyncio.sleep(0)
        plain(progress, message)

    job = AsyncArrowQuantV2().quantize_diffusion_model
    asyncio.run(job(digits_dit, tmp_path / "out", None, {"plain": plain, "coroutine": coroutine}[kind]))
    assert told == [0.0, 1.0]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None and isinstance(record.exc_info[1], ZeroDivisionError)


@pytest.mark.parametrize("during", ["a call", "the job", "both"])
def test_to_cancel_the_task_ends_the_job(
    during: str,
    big_model: Path,
    slow_config: DiffusionQuantConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"

    async def main() -> None:
        begun = asyncio.Event()
        cleaned_up = False

        async def callback(progress: float, message: str) -> None:
            nonlocal cleaned_up
            if progress < 0.3:
                return
            begun.set()
            if during == "the job":
                return
            try:
                await asyncio.Event().wait()
            finally:
                cleaned_up = True

        job = AsyncArrowQuantV2().quantize_model
        task = asyncio.create_task(job(big_model, out, slow_config, callback, progress_interval_s=0.01))
        await begun.wait()
        task.cancel()
        if during == "both":
            # Again while it waits for the job to end.
            await asyncio.sleep(0)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert task.cancelled()
            assert cleaned_up == (during != "the job")
        assert no_job_is_left()

    for _ in range(ATTEMPTS):
        asyncio.run(main())
        if not out.exists():
            break
        shutil.rmtree(out)
    assert f"the finished parts are in {out}.partial" in caplog.text
    slow_config.num_threads = 0
    assert (
        asyncio.run(AsyncArrowQuantV2().quantize_model(big_model, out, slow_config, resume=True))["resumed_parts"] > 0
    )
    assert os.listdir(tmp_path) == ["out"]
    shutil.rmtree(out)


def test_a_timeout_ends_the_job(big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path) -> None:
    async def main() -> None:
        job = AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job, timeout=0.05)
        assert no_job_is_left()

    asyncio.run(main())
    assert not (tmp_path / "out").exists()


def test_to_cancel_the_task_ends_a_comparison(big_model: Path, tmp_path: Path) -> None:
    ArrowQuantV2().quantize_model(big_model, tmp_path / "out", DiffusionQuantConfig(method="minmax"))

    async def main() -> None:
        task = asyncio.create_task(AsyncArrowQuantV2().validate_quality(big_model, tmp_path / "out"))
        # Until its thread has been started.
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert no_job_is_left()

    asyncio.run(main())
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_of_the_callback_ends_the_job(
    exception: type[BaseException], big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path
) -> None:
    async def callback(progress: float, message: str) -> None:
        raise exception

    with pytest.raises(exception):
        asyncio.run(AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config, callback))
    assert not (tmp_path / "out").exists()
    assert no_job_is_left()


def test_a_loop_that_is_closed_ends_the_job(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    begun = loop.create_future()

    def callback(progress: float, message: str) -> None:
        if not begun.done():
            begun.set_result(None)

    job = AsyncArrowQuantV2().quantize_model(
        big_model, tmp_path / "out", slow_config, callback, progress_interval_s=0.01
    )
    task = loop.create_task(job)
    loop.run_until_complete(begun)
    loop.close()
    for thread in threading.enumerate():
        if thread.name == "arrow-quant-job":
            thread.join()
    assert not (tmp_path / "out").exists()
    assert caplog.text.count("the event loop was closed") == 1
    # Let nobody tell that it was never awaited.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_coroutine_that_is_closed_ends_the_job(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path
) -> None:
    async def main() -> None:
        job = AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config)
        job.send(None)
        assert not no_job_is_left()
        job.close()
        while not no_job_is_left():
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a job", "a comparison"])
def test_a_loop_that_is_closed_ends_work_that_tells_nothing(
    kind: str,
    big_model: Path,
    slow_config: DiffusionQuantConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aio, "TICK_S", 0.001)
    out = tmp_path / "out"
    quantizer = AsyncArrowQuantV2()
    if kind == "a job":
        work = quantizer.quantize_model(big_model, out, slow_config, progress_interval_s=math.inf)
    else:
        ArrowQuantV2().quantize_model(big_model, out, DiffusionQuantConfig(method="minmax"))
        work = quantizer.validate_quality(big_model, out)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for thread in threading.enumerate():
        if thread.name == "arrow-quant-job":
            thread.join()
    assert out.exists() == (kind == "a comparison")
    assert [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()] == [
        "the event loop was closed before the work had ended, which is cancelled"
    ]
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("error", [None, ZeroDivisionError("of the work")])
def test_work_that_ended_when_the_loop_was_closed_is_not_called_cancelled(
    error: Exception | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks at the loop before the work has ended.
    monkeypatch.setattr(aio, "TICK_S", 60.0)
    is_closed = threading.Event()

    def function(*_: object) -> str:
        is_closed.wait()
        if error is not None:
            raise error
        return "value"

    loop = asyncio.new_event_loop()

    async def start() -> _Work:
        return _Work(function, None)

    work = loop.run_until_complete(start())
    task = loop.create_task(work.result())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    is_closed.set()
    work._thread.join()
    [record] = [record for record in caplog.records if "event loop" in record.getMessage()]
    assert "had ended; its result is lost" in record.getMessage()
    assert (record.exc_info[1] if record.exc_info else None) is error
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def cancelled_future() -> asyncio.Future[None]:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


async def awaits_what_was_cancelled() -> None:
    await cancelled_future()


async def awaits_a_task_that_is_cancelled() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


@pytest.mark.parametrize(
    "call",
    [
        cancelled_future,
        lambda: cancelled_future().result(),
        awaits_what_was_cancelled,
        awaits_a_task_that_is_cancelled,
    ],
    ids=["a future", "its result", "a coroutine", "a task"],
)
def test_what_a_callback_awaits_may_be_cancelled(
    call: Callable[[], Any], digits_dit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def callback(progress: float, message: str) -> Any:
        told.append(progress)
        return call()

    job = AsyncArrowQuantV2().quantize_model
    result = asyncio.run(job(digits_dit, tmp_path / "out", None, callback, progress_interval_s=math.inf))
    assert result["quantized_path"] == str(tmp_path / "out")
    assert told == [0.0, 1.0]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)


def test_a_callback_that_fails_when_it_is_cancelled(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def callback(progress: float, message: str) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError("of the callback")

        task = asyncio.create_task(
            AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config, callback)
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert no_job_is_left()

    asyncio.run(main())
    assert not (tmp_path / "out").exists()
    assert "ZeroDivisionError: of the callback" in caplog.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_callback_may_cancel_the_task(big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path) -> None:
    async def main() -> None:
        async def never_begun() -> None:
            raise AssertionError

        def callback(progress: float, message: str) -> Any:
            task.cancel()
            return never_begun()

        task = asyncio.create_task(
            AsyncArrowQuantV2().quantize_model(big_model, tmp_path / "out", slow_config, callback)
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        assert no_job_is_left()

    asyncio.run(main())
    assert not (tmp_path / "out").exists()


CHILD = """
import asyncio
import signal
import sys

from arrow_quant_v2 import AsyncArrowQuantV2, DiffusionQuantConfig

signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_callback(progress, message):
    print(progress, flush=True)


config = DiffusionQuantConfig(num_threads=1)
job = AsyncArrowQuantV2().quantize_model(
    sys.argv[1], sys.argv[2], config, progress_callback, progress_interval_s=0.01
)
try:
    asyncio.run(job)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal to send")
def test_ctrl_c_ends_a_job(big_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # The slowest kernels leave time for the signal.
    environment = {**os.environ, "ARROW_QUANT_ISA": "scalar"}
    command = [sys.executable, "-c", CHILD, str(big_model), str(out)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        told, said = child.communicate()
    assert told.split()[-1:] == ["KeyboardInterrupt"], said
    assert not out.exists()
