"""What a node keeps as JSON in a cell of its own tables, read back with its types checked.

SQLite has no sums of its own: a bit that turns in a page is another text, and most such texts are no JSON, or JSON
of another shape. What was so read went on as an error of the reader's: a worker that met it ended with "an internal
error", and a node did not start. A cell that makes no sense is said to be damaged instead, by its name.
"""

from typing import Any, Final, TypeVar, overload

import msgspec

from replicator.core.errors import DatabaseDamaged

T = TypeVar("T")
SENSELESS: Final = (ValueError, TypeError, RecursionError)
"""What reading a cell raises that is of another shape than was written (an error of `msgspec` is a `ValueError`)."""


@overload
def read_fact(text: str | bytes, kind: type[T], *, name: str) -> T: ...
@overload
def read_fact(text: str | bytes, kind: Any, *, name: str) -> Any: ...
def read_fact(text: str | bytes, kind: Any, *, name: str) -> Any:
    """Raises `DatabaseDamaged`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except SENSELESS as error:
        raise damaged_cell(name, error) from error


def damaged_cell(name: str, error: Exception) -> DatabaseDamaged:
    """What the catalogue says of `name` makes no sense."""
    return DatabaseDamaged(
        f"What the catalogue says of {name} is damaged: {error}.",
        hint="Put a copy of the catalogue back, with its -wal file; or move it away: its snapshots are then found in "
        "the store.",
    )
