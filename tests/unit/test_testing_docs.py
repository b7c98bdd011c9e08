"""The examples of docs/testing.md do what the page says, and open no socket on the way."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def no_network(*_: Any, **__: Any) -> None:
    raise AssertionError("the mesh in memory opens a socket")


def test_there_is_an_example() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("source", EXAMPLES)
def test_an_example_runs_as_it_is_printed(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("bind", "connect", "listen"):
        monkeypatch.setattr(socket.socket, verb, no_network, raising=False)
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_a_mesh_takes_ten_lines() -> None:
    [body] = re.findall(r"async with MemoryMesh\(\).*?\n\n", EXAMPLES[0], re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 12
