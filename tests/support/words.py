"""What a user must be told: the exit code, the words, a next step."""

import json
from typing import Any

from tests.support.nodes import Said


def expect(said: Said, code: int, *words: str) -> None:
    """That exit code, all those words, and a next step."""
    assert said.code == code, said
    for word in words:
        assert word in said.text, (word, said)
    assert "Next:" in said.err, said


def expect_json(said: Said, code: int, name: str) -> dict[str, Any]:
    assert said.code == code, said
    error: dict[str, Any] = json.loads(said.out)["error"]
    assert error["code"] == name and error["exit_code"] == code and error["message"], error
    return error
