"""Declaring messages, and turning them into bytes and back.

A message is a frozen dataclass with a number: `@message(code=0x21, since=1)`. On the wire it
is one msgpack array: the number, then the fields in the order of the class.

How it may grow: a later version appends fields with defaults. An older receiver ignores what
it does not know at the end; a newer one fills in what is missing. Nothing is ever reordered,
and no number is used twice. `tests/golden` holds the frozen bytes that prove it.

Parse at the door, trust inside: every field is checked here against its declared type and
bound, once. The types a field may have are those in `_checker` and no others.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgpack

from protocol.errors import Malformed, TooLarge
from protocol.limits import CONTROL_FRAME_MAX, LIST_MAX, TEXT_MAX

_Check = Callable[[str, Any], Any]
_M = TypeVar("_M", bound="Message")


class Message:
    """The root of all messages; `code` and `since` are set by the decorator."""

    code: typing.ClassVar[int] = 0
    since: typing.ClassVar[int] = 0
    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Form:
    cls: type[Message]
    names: tuple[str, ...]
    checks: tuple[_Check, ...]
    required: int


_FORMS: Final[dict[int, _Form]] = {}


def message(*, code: int, since: int) -> Callable[[type[_M]], type[_M]]:
    """Give a dataclass its number on the wire and the protocol version that introduced it."""

    def register(cls: type[_M]) -> type[_M]:
        assert code not in _FORMS, f"{cls.__name__} and {_FORMS[code].cls.__name__} share the number {code:#x}"
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # every message is a dataclass
        hints = typing.get_type_hints(cls, include_extras=True)
        checks = tuple(_checker(hints[field.name]) for field in fields)
        required = sum(field.default is dataclasses.MISSING for field in fields)
        cls.code, cls.since = code, since
        _FORMS[code] = _Form(cls, tuple(field.name for field in fields), checks, required)
        return cls

    return register


def registered() -> dict[int, type[Message]]:
    """All messages by number: for the documentation and the fuzzer."""
    return {code: form.cls for code, form in sorted(_FORMS.items())}


def encode(item: Message) -> bytes:
    """The bytes of a message.

    Raises `TooLarge` if they would not fit a frame: the caller has to say it in more messages.
    """
    form = _FORMS[item.code]
    values = [getattr(item, name) for name in form.names]
    for name, value in zip(form.names, values, strict=True):
        _refuse_oversize(name, value)
    packed: bytes = msgpack.packb([item.code, *values], use_bin_type=True)
    if len(packed) > CONTROL_FRAME_MAX:
        raise TooLarge(f"{type(item).__name__} takes {len(packed)} bytes; the limit is {CONTROL_FRAME_MAX}")
    return packed


def _refuse_oversize(name: str, value: Any) -> None:
    """What `unpack` would refuse is not sent: better one failed call here than a broken connection there."""
    if isinstance(value, tuple):
        if len(value) > LIST_MAX:
            raise TooLarge(f"{name} has {len(value)} elements; the limit is {LIST_MAX}")
        for element in value:
            _refuse_oversize(name, element)
    elif isinstance(value, str) and len(value) > TEXT_MAX // 4 and len(value.encode()) > TEXT_MAX:
        raise TooLarge(f"{name} is a text of over {TEXT_MAX} bytes")


def decode(data: bytes) -> Message:
    """The message in `data`. Raises `Malformed` for anything that is not exactly one known, well-typed message."""
    parts = unpack(data)
    if not isinstance(parts, list) or not parts or type(parts[0]) is not int:
        raise Malformed("a message is an array that starts with its number")
    form = _FORMS.get(parts[0])
    if form is None:
        raise Malformed(f"message number {parts[0]:#x} is not one that we know")
    values = parts[1 : len(form.names) + 1]
    if len(values) < form.required:
        raise Malformed(f"{form.cls.__name__} has {len(values)} fields; it needs {form.required}")
    checked = {name: check(name, value) for name, check, value in zip(form.names, form.checks, values, strict=False)}
    return form.cls(**checked)


def unpack(data: bytes) -> Any:
    """One msgpack value out of bytes that a stranger may have written. Raises `Malformed`."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=TEXT_MAX,
            max_array_len=LIST_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack as we use it: {error}") from error


class Size:
    """Annotation: this `bytes` field has exactly so many bytes, or (`multiple`) a multiple of them."""

    def __init__(self, count: int, *, multiple: bool = False, most: int | None = None) -> None:
        self.count, self.multiple, self.most = count, multiple, most

    def check(self, name: str, value: bytes) -> bytes:
        size = len(value)
        if size % self.count if self.multiple else size != self.count:
            wanted = f"a multiple of {self.count}" if self.multiple else f"{self.count}"
            raise Malformed(f"{name} has {size} bytes; expected {wanted}")
        if self.most is not None and size > self.most * self.count:
            raise TooLarge(f"{name} has {size // self.count} elements; the limit is {self.most}")
        return value


def _checker(hint: Any) -> _Check:
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        inner = _checker(base)
        sizes = [extra for extra in extras if isinstance(extra, Size)]

        def sized(name: str, value: Any) -> Any:
            value = inner(name, value)
            for size in sizes:
                size.check(name, value)
            return value

        return sized
    if typing.get_origin(hint) is tuple:
        each = _checker(typing.get_args(hint)[0])

        def several(name: str, value: Any) -> Any:
            if not isinstance(value, list):
                raise Malformed(f"{name} should be a list")
            return tuple(each(name, element) for element in value)

        return several
    plain: type = getattr(hint, "__supertype__", hint)  # a NewType of bytes or int is checked as its base
    assert plain in (int, bytes, str, bool), f"a message field cannot be {hint!r}"

    def exactly(name: str, value: Any) -> Any:
        if type(value) is not plain:
            raise Malformed(f"{name} should be {plain.__name__}, not {type(value).__name__}")
        if isinstance(value, int) and value < 0:
            raise Malformed(f"{name} is negative")
        return value

    return exactly
