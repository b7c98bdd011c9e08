"""What a command prints: results on stdout, progress and errors on stderr.

`--json` prints exactly one JSON value on stdout, also for an error, and nothing else there.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from replicator.core.errors import ReplicatorError
from replicator.core.paths import shown
from replicator.core.units import format_size, format_span

_LINE_EVERY_S: Final = 5.0


class Output:
    """One command's output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._is_tty = sys.stderr.isatty()
        self._shown = ""
        self._shown_at = 0.0
        self._began = time.monotonic()

    def result(self, value: Any, human: Callable[[], None]) -> None:
        """Print the result: as JSON, or as `human` says it."""
        self.clear()
        if self.as_json:
            print(json.dumps(value, indent=2, default=str))
        else:
            human()

    def error(self, error: ReplicatorError) -> None:
        self.clear()
        if self.as_json:
            body = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            print(json.dumps({"error": body}, indent=2))
        else:
            print(f"Error: {shown(error.message)}", file=sys.stderr)
            if error.hint:
                print(f"  Next: {shown(error.hint)}", file=sys.stderr)

    def job(self, job: dict[str, Any]) -> None:
        """Show how a job is going: one line that is rewritten on a terminal, a line now and then elsewhere."""
        if job["progress"] is not None:
            self.progress(job["kind"], job["progress"])

    def progress(self, kind: str, progress: dict[str, Any]) -> None:
        if self.as_json or time.monotonic() - self._began < 0.4:
            return
        line = shown(f"{kind}: {describe_progress(progress)}")
        if self._is_tty:
            print(f"\r\x1b[2K{line[:150]}", end="", file=sys.stderr, flush=True)
            self._shown = line
        elif time.monotonic() - self._shown_at > _LINE_EVERY_S and line != self._shown:
            print(line, file=sys.stderr, flush=True)
            self._shown, self._shown_at = line, time.monotonic()

    def clear(self) -> None:
        if self._is_tty and self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._shown = ""


def describe_progress(progress: dict[str, Any]) -> str:
    """`reading every block  1.2 GB of 4.0 GB (30 %)  812.0 MB/s  4 s left`."""
    in_bytes = progress["unit"] == "bytes"

    def amount(count: float) -> str:
        return format_size(count) if in_bytes else f"{count:,.0f}"

    done, total = progress["done"], progress["total"]
    parts = [progress["phase"]]
    if total:
        parts.append(f"{amount(done)} of {amount(total)}{'' if in_bytes else ' ' + progress['unit']}")
        parts.append(f"({100 * done / total:.0f} %)")
    elif done:
        parts.append(f"{amount(done)}{'' if in_bytes else ' ' + progress['unit']}")
    if progress["rate"]:
        parts.append(f"{amount(progress['rate'])}/s")
    if progress["eta_s"] is not None:
        parts.append(f"{format_span(progress['eta_s'])} left")
    if progress["detail"]:
        parts.append(f"[{progress['detail']}]")
    return " ".join(parts)


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> None:
    """Columns as wide as they need; numbers to the right."""
    texts = [[shown(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[at]) for line in [list(head), *texts]) for at in range(len(head))]
    right = [bool(texts) and all(_looks_numeric(line[at]) for line in texts) for at in range(len(head))]
    for line in [list(head), *texts]:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


_ID_DIGITS: Final = 8


def _looks_numeric(cell: str) -> bool:
    """Ids are not: whether one begins with a digit is chance, and must not move its column."""
    is_id = len(cell) >= _ID_DIGITS and all(letter in "0123456789abcdef" for letter in cell)
    return (cell[:1].isdigit() and not is_id) or cell in ("-", "")


def link_word(peer: dict[str, Any]) -> str:
    """How it stands with the link to a peer, in a column."""
    if peer["linked"]:
        return "linked"
    return f"now {peer['replaced_by']}?" if peer["replaced_by"] else "no link"


def age(seconds: float | None) -> str:
    return "never" if seconds is None else f"{format_span(seconds)} ago"
