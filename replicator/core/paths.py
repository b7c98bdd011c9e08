"""Paths as text: for people, where nothing may disturb a terminal, and for JSON, where no byte may be lost.

A path is bytes, and any byte but NUL may be in it. On a terminal an escape sequence in a name would
be obeyed and a line feed would make one path look like two, so both are shown as escapes. JSON
carries text only: a path that is no UTF-8 is spelled `hex:` and its bytes, and so is one that
begins like that, so that there is one reading of each spelling.
"""

import os
from typing import Final

_HEX: Final = "hex:"


def shown(text: str) -> str:
    """Text for a line of output: what cannot be printed is written as an escape."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(one: str) -> str:
    if "\udc80" <= one <= "\udcff":
        return f"\\x{ord(one) - 0xDC00:02x}"  # A byte that was no text, as Python keeps it.
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


def spell_path(path: str) -> str:
    """A path as JSON can carry it."""
    raw = os.fsencode(path)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return _HEX + raw.hex()
    return _HEX + raw.hex() if path.startswith(_HEX) else path


def read_path(text: str) -> bytes:
    """The bytes of a spelled path. Raises `ValueError` if `hex:` is followed by something else."""
    return bytes.fromhex(text.removeprefix(_HEX)) if text.startswith(_HEX) else os.fsencode(text)
