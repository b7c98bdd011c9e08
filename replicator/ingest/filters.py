"""What to leave out of a tree: patterns like those of `.gitignore`, relative to the protected folder.

    *.tmp          any path whose last part matches
    cache/         only folders of that name, with all that is in them
    /build         only at the top; so does any pattern with a `/` inside, as `docs/_build`
    logs/**/old    `**` stands for any number of folders, also none
    !keep.tmp      takes back an earlier pattern; the last one that matches decides

`*`, `?` and `[a-z]` never match a `/`. A folder that is left out is not entered, so nothing
inside it can be taken back. Matching is on bytes: names need not be valid text.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Rule:
    matches: re.Pattern[bytes]
    takes_back: bool
    folders_only: bool


class Filters:
    """The patterns of one source."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [_rule(pattern) for pattern in patterns if pattern.strip() and not pattern.startswith("#")]
        self.has_rules = bool(self._rules)

    def leaves_out(self, path: bytes, *, is_directory: bool) -> bool:
        """`path` is relative to the protected folder."""
        for rule in reversed(self._rules):
            if (is_directory or not rule.folders_only) and rule.matches.fullmatch(path):
                return not rule.takes_back
        return False


def _rule(pattern: str) -> _Rule:
    text = os.fsencode(pattern.strip())
    takes_back = text.startswith(b"!")
    text = text.removeprefix(b"!")
    folders_only = text.endswith(b"/")
    text = text.rstrip(b"/")
    prefix = b"" if b"/" in text else b"(?:.*/)?"
    return _Rule(re.compile(prefix + _translate(text.lstrip(b"/")), re.DOTALL), takes_back, folders_only)


def _translate(text: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(text):
        if text.startswith(b"**/", at):
            parts.append(b"(?:.*/)?")
            at += 3
        elif text.startswith(b"**", at):
            parts.append(b".*")
            at += 2
        elif text[at : at + 1] == b"[" and (end := text.find(b"]", at + 2)) > 0:
            inside = text[at + 1 : end].replace(b"\\", rb"\\").replace(b"[", rb"\[")
            parts.append(b"(?!/)[" + (b"^" + inside[1:] if inside.startswith(b"!") else inside) + b"]")
            at = end + 1
        else:
            parts.append({b"*": b"[^/]*", b"?": b"[^/]"}.get(text[at : at + 1]) or re.escape(text[at : at + 1]))
            at += 1
    return b"".join(parts)
