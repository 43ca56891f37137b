"""The same as `ArrowQuantV2`, to be awaited."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any

from . import _native, arrays
from .jobs import (
    CalibrationTable,
    Query,
    QuantizeJob,
    checked_mode,
    refuse_base,
    refuse_calibration,
    validate_quality,
)
from .log import log
from .progress import TICK_S, Callback, Progress

if TYPE_CHECKING:
    # It takes long to import, and whoever awaits something has it.
    import asyncio


class AsyncArrowQuantV2:
    """`ArrowQuantV2` for asyncio: its methods are coroutines, and the event loop runs on while they work.

    Each call works in a thread of its own. To cancel a task that awaits one ends the work: when
    `asyncio.CancelledError` is raised, nothing is at work any more, and what a job that quantizes a model had finished
    is in ``OUTPUT_PATH.partial``, for a run with `resume`. Arrays that are being quantized are finished before.

    Args:
        mode: as of `ArrowQuantV2`.

    Raises:
        ConfigurationError: if there is no such mode; its `field` is ``"mode"``.

    Example:
        >>> async def main():
        ...     quantizer = AsyncArrowQuantV2()
        ...     result = await quantizer.quantize_diffusion_model("dream-7b/", "dream-7b-int4/")
        ...     print(f"{result['compression_ratio']:.1f}x")
        >>> asyncio.run(main())
    """

    def __init__(self, mode: str = "diffusion") -> None:
        self._mode = checked_mode(mode)

    def __repr__(self) -> str:
        return f"AsyncArrowQuantV2(mode={self._mode!r})"

    @property
    def mode(self) -> str:
        """``"diffusion"`` or ``"base"``."""
        return self._mode

    async def quantize_diffusion_model(
        self,
        model_path: str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        config: _native.DiffusionQuantConfig | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
    ) -> dict[str, Any]:
        """Quantizes a diffusion model: all that is said of `quantize_model` holds.

        `calibration` is that of `ArrowQuantV2.quantize_diffusion_model`.

        Raises:
            ConfigurationError: in mode ``"base"``; else as `quantize_model`.
            MetadataError: if the calibration contradicts itself or is of another model; else as `quantize_model`.

        Example:
            >>> async def progress_callback(progress, message):
            ...     await websocket.send(f"{progress:.1%} - {message}")
            >>> result = await AsyncArrowQuantV2().quantize_diffusion_model(
            ...     "dream-7b/", "dream-7b-int4/", progress_callback=progress_callback)
        """
        refuse_base(self._mode)
        job = QuantizeJob(
            self._mode,
            model_path,
            output_path,
            config,
            progress_callback,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
            calibration=calibration,
        )
        result: dict[str, Any] = await _Work(job.run, job.callback).result()
        return result

    async def quantize_model(
        self,
        model_path: str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        config: _native.DiffusionQuantConfig | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: None = None,
    ) -> dict[str, Any]:
        """Quantizes a model of any kind into a new directory, as `ArrowQuantV2.quantize_model` does.

        `progress_callback` is called in the event loop's thread, one call at a time, and what it returns is awaited if
        it can be. While a call is awaited the job goes on, and of what it tells meanwhile only the newest is told then.

        Args, returns and errors are those of `ArrowQuantV2.quantize_model`.

        Raises:
            asyncio.CancelledError: if the task was cancelled.

        Example:
            >>> async with asyncio.timeout(600):
            ...     result = await AsyncArrowQuantV2(mode="base").quantize_model("smol-lm/", "smol-lm-int4/")
        """
        refuse_calibration(calibration)
        job = QuantizeJob(
            self._mode,
            model_path,
            output_path,
            config,
            progress_callback,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
        )
        result: dict[str, Any] = await _Work(job.run, job.callback).result()
        return result

    async def quantize_query(
        self,
        query: str,
        output_path: str | os.PathLike[str],
        config: _native.DiffusionQuantConfig | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        connection: _native.Connection | None = None,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
    ) -> dict[str, Any]:
        """Quantizes what a query gives into a new directory, as `ArrowQuantV2.quantize_query` does.

        `progress_callback` is called as by `quantize_model`. Args, returns and errors are those of
        `ArrowQuantV2.quantize_query`.

        Raises:
            asyncio.CancelledError: if the task was cancelled.

        Example:
            >>> result = await AsyncArrowQuantV2().quantize_query("SELECT * FROM weights('dream-7b/')", "dream-7b-int4/")
        """
        if self._mode == "base" and calibration is not None:
            refuse_base(self._mode)
        job = QuantizeJob(
            self._mode,
            Query(query, connection),
            output_path,
            config,
            progress_callback,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
            calibration=calibration,
        )
        result: dict[str, Any] = await _Work(job.run, job.callback).result()
        return result

    async def validate_quality(
        self,
        original_path: str | os.PathLike[str],
        quantized_path: str | os.PathLike[str],
        *,
        min_accuracy: float | None = None,
        calibration: CalibrationTable | None = None,
    ) -> dict[str, Any]:
        """Compares a quantized model with its original, as `ArrowQuantV2.validate_quality` does.

        Args, returns and errors are those of `ArrowQuantV2.validate_quality`.

        Example:
            >>> quality = await AsyncArrowQuantV2().validate_quality("dream-7b/", "dream-7b-int4/")
        """

        def work(_: object, cancellation: _native.Cancellation) -> dict[str, Any]:
            return validate_quality(original_path, quantized_path, min_accuracy, calibration, cancellation)

        result: dict[str, Any] = await _Work(work, None).result()
        return result

    async def quantize(
        self, weights: Any, bit_width: int = 4, group_size: int = 128, scheme: str = "affine", method: str = "mse"
    ) -> Any:
        """Quantizes arrays in memory, as `ArrowQuantV2.quantize` does.

        Args, returns and errors are those of `ArrowQuantV2.quantize`.

        Example:
            >>> quantized = await AsyncArrowQuantV2().quantize({"w": np.ones((256, 1024), np.float32)}, bit_width=8)
        """
        return await _Work(lambda *_: arrays.quantize(weights, bit_width, group_size, scheme, method), None).result()

    async def dequantize(self, quantized: Any) -> Any:
        """Restores arrays, as `ArrowQuantV2.dequantize` does.

        Args, returns and errors are those of `ArrowQuantV2.dequantize`.

        Example:
            >>> restored = await AsyncArrowQuantV2().dequantize(quantized)
        """
        return await _Work(lambda *_: arrays.dequantize(quantized), None).result()


class _Work:
    """Work in a thread of its own, and what it tells the event loop.

    `_run` and what it calls run in that thread, `_watch` in another, and all others in the loop's. What they share is
    set by one of them, so that nothing needs a lock.
    """

    def __init__(
        self,
        function: Callable[[Callable[[Progress], None] | None, _native.Cancellation], Any],
        callback: Callback | None,
    ) -> None:
        import asyncio

        self._function = function
        self._callback = callback
        self._cancellation = _native.Cancellation()
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="arrow-quant-job")
        self._news = asyncio.Event()
        self._untold: list[Progress] = []
        self._has_told = False
        self._has_ended = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._is_done = threading.Event()

    async def result(self) -> Any:
        """Does the work, and returns what it does."""
        self._thread.start()
        try:
            await self._follow()
        except GeneratorExit:
            # Nobody awaits this any more, and it cannot await anything either.
            self._cancellation.cancel()
            raise
        except BaseException:
            self._cancellation.cancel()
            await self._end()
            raise
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            # Its traceback refers to this.
            self._error = None

    async def _follow(self) -> None:
        """Calls the callback until the work has ended."""
        while not (self._has_ended and (self._error or not self._untold)):
            await self._news.wait()
            self._news.clear()
            while self._untold and self._callback is not None and self._error is None:
                self._has_told = True
                await self._call(self._callback, self._untold.pop(0))

    async def _call(self, callback: Callback, progress: Progress) -> None:
        import asyncio

        try:
            result = callback.call(progress)
        except (Exception, asyncio.CancelledError) as error:
            callback.failed(error)
            return
        if isawaitable(result):
            await self._await(callback, result)

    async def _await(self, callback: Callback, awaitable: Awaitable[object]) -> None:
        """Awaits what a call returned.

        That is done in a task of its own: if something that it awaits is cancelled, it has failed, and in this task
        that could not be told from the task's being cancelled.
        """
        import asyncio

        call = asyncio.ensure_future(_raised(awaitable))
        try:
            await asyncio.wait((call,))
        except GeneratorExit:
            if not self._loop.is_closed():
                call.cancel()
            raise
        except asyncio.CancelledError:
            self._cancellation.cancel()
            call.cancel()
            while not call.done():
                try:
                    await asyncio.wait((call,))
                except asyncio.CancelledError:
                    call.cancel()
            if not call.cancelled():
                error = call.result()
                if isinstance(error, Exception):
                    callback.failed(error)
            elif iscoroutine(awaitable):
                # It did not even begin.
                awaitable.close()
            raise
        error = None if call.cancelled() else call.result()
        if isinstance(error, (Exception, asyncio.CancelledError)):
            callback.failed(error)
        elif error is not None:
            raise error

    async def _end(self) -> None:
        """Waits for the end of work that was cancelled."""
        import asyncio

        while not self._has_ended:
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                # It is cancelled already.
                continue
            self._news.clear()
        if self._error is not None and not isinstance(self._error, _native.Cancelled):
            log(logging.WARNING, "work that was cancelled ended with an error", error=self._error)
        self._error = None

    def _run(self) -> None:
        try:
            value = self._watched()
        except BaseException as error:
            self._give(None, error)
        else:
            self._give(value, None)

    def _watched(self) -> Any:
        watcher = threading.Thread(target=self._watch, name="arrow-quant-watch")
        watcher.start()
        try:
            return self._function(None if self._callback is None else self._tell, self._cancellation)
        finally:
            self._is_done.set()
            watcher.join()

    def _give(self, value: Any, error: BaseException | None) -> None:
        if not self._post(self._ended, value, error) and not isinstance(error, _native.Cancelled):
            log(logging.WARNING, "the event loop was closed, and the work had ended; its result is lost", error=error)

    def _tell(self, progress: Progress) -> None:
        self._post(self._told, progress)

    def _post(self, function: Callable[..., None], *arguments: object) -> bool:
        """Has the loop call a function; False if it is closed."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return False
        return True

    def _watch(self) -> None:
        """Cancels the work if the loop is closed meanwhile: nobody can await it any more."""
        while not self._is_done.wait(TICK_S):
            if self._loop.is_closed():
                self._cancellation.cancel()
                log(logging.WARNING, "the event loop was closed before the work had ended, which is cancelled")
                return

    def _told(self, progress: Progress) -> None:
        # The first is told in any case, and of the others that wait the newest.
        del self._untold[0 if self._has_told else 1 :]
        self._untold.append(progress)
        self._news.set()

    def _ended(self, value: Any, error: BaseException | None) -> None:
        # To tell this was the last that it did.
        self._thread.join()
        self._value, self._error, self._has_ended = value, error, True
        self._news.set()


async def _raised(awaitable: Awaitable[object]) -> BaseException | None:
    """Awaits something; what it raises."""
    try:
        await awaitable
    except GeneratorExit:
        raise
    except BaseException as error:
        # Returned, because KeyboardInterrupt that leaves a task ends the loop, before the work has ended.
        return error
    return None
