"""Paths that people and JSON can read, whatever bytes are in them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.errors import SourceError
from replicator.core.paths import read_path, shown, spell_path


@given(st.binary(max_size=40))
def test_a_spelled_path_is_text_and_reads_back_to_the_same_bytes(raw: bytes) -> None:
    spelled = spell_path(os.fsdecode(raw))
    spelled.encode()
    assert read_path(spelled) == raw


def test_a_path_that_looks_like_a_spelling_is_spelled_itself() -> None:
    assert read_path(spell_path("hex:not")) == b"hex:not"
    assert spell_path("plain/ünï") == "plain/ünï"
    with pytest.raises(ValueError):
        read_path("hex:zz")


@given(st.binary(max_size=40))
def test_what_is_shown_is_one_line_that_no_terminal_obeys(raw: bytes) -> None:
    text = shown(os.fsdecode(raw))
    assert text.isprintable()
    text.encode()


def test_a_message_about_an_odd_path_is_text() -> None:
    error = SourceError(f"{os.fsdecode(bytes([47, 255]))} is gone.")
    assert error.message == "/\\xff is gone."
