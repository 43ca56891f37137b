"""The same as `ArrowQuantV2`, to be awaited."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from . import _native
from .log import log
from .progress import TICK_S, Callback, Progress
from .quantizer import ArrowQuantV2

if TYPE_CHECKING:
    # It takes long to import, and a program that awaits something has imported it.
    import asyncio


_Arguments = ParamSpec("_Arguments")
_Outcome = TypeVar("_Outcome")


class _Prepared(ArrowQuantV2):
    """Checks arguments as `ArrowQuantV2` does, and hands the work over instead of doing it."""

    def _do(self, work: Any) -> Any:
        return work


def _awaited(
    method: Callable[Concatenate[ArrowQuantV2, _Arguments], _Outcome],
) -> Callable[Concatenate[AsyncArrowQuantV2, _Arguments], Coroutine[Any, Any, _Outcome]]:
    """A method of `ArrowQuantV2` as a coroutine, with the same arguments."""

    @functools.wraps(method)
    async def awaited(self: AsyncArrowQuantV2, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Outcome:
        work: Any = method(self._quantizer, *arguments, **named)
        outcome: _Outcome = await _Work(work.run, work.callback).result()
        return outcome

    awaited.__qualname__ = f"AsyncArrowQuantV2.{method.__name__}"
    awaited.__module__ = __name__
    awaited.__doc__ = (
        f"As `ArrowQuantV2.{method.__name__}`, to be awaited. If the task is cancelled, the work ends before\n"
        f"        `asyncio.CancelledError` is raised.\n\n        {method.__doc__}"
    )
    return awaited


class AsyncArrowQuantV2:
    """`ArrowQuantV2` for asyncio: its methods are coroutines, and the event loop runs on while they work.

    The methods take the same arguments, return the same and raise the same errors. A `progress_callback` is called in the
    event loop's thread, one call at a time, and what it returns is awaited if it can be; while a call is awaited the job
    goes on, and of what it tells meanwhile only the newest is told then.

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
        self._quantizer = _Prepared(mode)

    def __repr__(self) -> str:
        return f"AsyncArrowQuantV2(mode={self.mode!r})"

    @property
    def mode(self) -> str:
        """``"diffusion"`` or ``"base"``."""
        return self._quantizer.mode

    quantize_diffusion_model = _awaited(ArrowQuantV2.quantize_diffusion_model)
    quantize_model = _awaited(ArrowQuantV2.quantize_model)
    quantize_query = _awaited(ArrowQuantV2.quantize_query)
    export = _awaited(ArrowQuantV2.export)
    validate_quality = _awaited(ArrowQuantV2.validate_quality)
    plan = _awaited(ArrowQuantV2.plan)
    inspect = _awaited(ArrowQuantV2.inspect)
    report = _awaited(ArrowQuantV2.report)
    quantize = _awaited(ArrowQuantV2.quantize)
    dequantize = _awaited(ArrowQuantV2.dequantize)


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
