"""One line of log for one unit of work.

An event name is a constant dotted fact (`block.corrupt`, `sync.finished`); data are keys.
error = someone must act; warning = we coped; info = the canonical line that ends a piece of
work. Console for a terminal, JSON otherwise, always on stderr.

A line that cannot be written is lost, and nothing else is: on a full disk the log of a node is
the first thing that fails, and it must not take the node with it.
"""

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

Logger = structlog.stdlib.BoundLogger


class _Forgiving:
    """A stream whose disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure(*, as_json: bool | None = None, level: str = "info") -> None:
    """Called once by `app`, and by nobody else."""
    if as_json is None:
        as_json = not sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _Forgiving(sys.stderr))),
        cache_logger_on_first_use=False,
    )


def get_logger(**context: object) -> Logger:
    """A logger with `context` on every line. Takes its settings from `configure` when the first line is written."""
    logger: Logger = structlog.get_logger(**context)
    return logger
