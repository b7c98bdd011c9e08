"""docs/protocol.md says what the code says: every message with its fields in order, every code, every bound."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

import protocol.limits as limits_module
from protocol.errors import ErrorCode
from protocol.messages import blocks, mesh, repair, session, snapshots, summary
from protocol.messages.registry import Message, Size, registered
from protocol.messages.versions import CURRENT
from protocol.wire.frames import FrameKind, Lane

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
DECLARED = (blocks, mesh, repair, session, snapshots, summary)
"""(Importing them declares what they hold.)"""


def type_text(hint: Any) -> str:
    """A field's type as the page writes it."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        for size in extras:
            if isinstance(size, Size):
                return size_text(size)
        return type_text(base)
    if typing.get_origin(hint) is tuple:
        return f"array of {type_text(typing.get_args(hint)[0])}"
    plain = getattr(hint, "__supertype__", hint)
    return {int: "int", bool: "bool", str: "str", bytes: "bin"}[plain]


def size_text(size: Size) -> str:
    if not size.multiple:
        return f"bin, {size.count} bytes"
    if size.count == 1:
        return f"bin, at most {size.most:,} bytes"
    return f"bin, a multiple of {size.count} bytes" + ("" if size.most is None else f", at most {size.most:,}")


def table_of(cls: type[Message]) -> list[tuple[str, str]]:
    """Names and types of the fields, as the page lists them."""
    head = f"**`0x{cls.code:02x}` {cls.__name__}.**"
    assert head in PAGE, f"{head} is not on the page"
    part = re.split(r"\n\*\*`0x|\n#", PAGE[PAGE.index(head) + len(head) :])[0]
    return re.findall(r"^\| ([a-z_]+) \| ([^|]*[^| ]) +\|", part, re.M)


@pytest.mark.parametrize("cls", registered().values(), ids=lambda cls: cls.__name__)
def test_a_message_is_on_the_page_as_it_is_declared(cls: type[Message]) -> None:
    hints = typing.get_type_hints(cls, include_extras=True)
    declared = [(one.name, type_text(hints[one.name])) for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
    assert [row for row in table_of(cls) if row[0] != "field"] == declared
    heading = PAGE[: PAGE.index(f"**`0x{cls.code:02x}`")].rpartition("\n### ")[2].splitlines()[0]
    assert ("version 2" in heading) == (cls.since == 2), "each version has its own part"


def test_the_page_names_no_message_that_is_not_declared_and_the_newest_version() -> None:
    named = {int(code, 16): name for code, name in re.findall(r"^\*\*`0x([0-9a-f]{2})` (\w+)\.\*\*", PAGE, re.M)}
    assert named == {code: cls.__name__ for code, cls in registered().items()}
    assert f"true for the protocol's versions 1 to {CURRENT}" in PAGE


def test_codes_kinds_and_lanes_are_those_of_the_code() -> None:
    codes = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", PAGE, re.M)
    assert codes == [(str(int(code)), code.name) for code in ErrorCode]
    kinds = PAGE[PAGE.index("| kind | name |") : PAGE.index("**Lanes.**")]
    assert re.findall(r"^\| (\d+) \| ([A-Z]+) \|", kinds, re.M) == [(str(int(one)), one.name) for one in FrameKind]
    lanes = PAGE[PAGE.index("| lane | name |") : PAGE.index("**States.**")]
    assert re.findall(r"^\| (\d+) \| ([A-Z]+) \|", lanes, re.M) == [(str(int(one)), one.name) for one in Lane]


def test_every_bound_is_on_the_page_with_its_value() -> None:
    units = ("KIB", "MIB")
    bounds = {
        name: f"{value:,g}" if isinstance(value, float) else f"{value:,}"
        for name, value in vars(limits_module).items()
        if name.isupper() and isinstance(value, int | float) and name not in units
    }
    assert dict(re.findall(r"^\| `([A-Z_]+)` \| ([0-9,.]+) \|", PAGE, re.M)) == bounds
