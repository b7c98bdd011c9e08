"""A Hypothesis strategy for every message, built from its declaration."""

import dataclasses
import typing
from typing import Any

from hypothesis import strategies as st

from protocol.messages.registry import Message, Size, registered

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type may have."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        sizes = [extra for extra in extras if isinstance(extra, Size)]
        return sized_bytes(sizes[0]) if sizes else values_of(base)
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=5).map(tuple)
    plain = getattr(hint, "__supertype__", hint)
    return {
        int: st.integers(0, 2**64 - 1), bool: st.booleans(), str: TEXT, bytes: st.binary(max_size=100),
    }[plain]  # fmt: skip


def sized_bytes(size: Size) -> st.SearchStrategy[bytes]:
    if not size.multiple:
        return st.binary(min_size=size.count, max_size=size.count)
    most = min(5, size.most) if size.most is not None else 5
    return st.integers(0, most).flatmap(lambda n: st.binary(min_size=n * size.count, max_size=n * size.count))


def messages_of(cls: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return st.builds(cls, **{field.name: values_of(hints[field.name]) for field in fields})


def any_message() -> st.SearchStrategy[Message]:
    return st.sampled_from(list(registered().values())).flatmap(messages_of)
