"""What this package has to say to `logging`."""

from __future__ import annotations

import logging
import sys
import traceback

_logger = logging.getLogger("arrow_quant_v2")


def log(level: int, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Logs a message, with the traceback of an exception.

    A filter that raises does not change what a job comes to: like a handler's, its exception is printed.

    Example:
        >>> log(logging.WARNING, "%s is there already", "dream-7b-int4")
    """
    try:
        _logger.log(level, message, *arguments, exc_info=error, stacklevel=2)
    except Exception:
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()
