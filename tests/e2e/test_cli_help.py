"""The help of every command: it names its exit codes, and they exist."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cyclopts import App

from replicator.app.cli.program import app
from replicator.core import errors
from tests.support.nodes import run_cli

KNOWN = {0, 1, 130} | {
    kind.exit_code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ReplicatorError)
}


def commands(of: App, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in of:
        if not name.startswith("-"):
            inner = of[name]
            below = list(commands(inner, (*words, name)))
            yield from below or [(*words, name)]


ALL = list(commands(app))


def test_there_are_commands_to_look_at() -> None:
    assert {("init",), ("up",), ("pair", "join"), ("snapshot", "create"), ("restore",), ("jobs", "cancel")} <= set(ALL)
    assert len(ALL) >= 25


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_help_of_a_command_names_exit_codes_that_exist_and_offers_json(words: tuple[str, ...]) -> None:
    said = run_cli(*words, "--help")
    assert said.code == 0
    text = re.sub(r"[│╭╰─╮╯]", " ", said.out)
    text = re.sub(r"\s+", " ", text)
    assert "--json" in text
    assert "--state" in text
    assert "--empty-" not in text and 'default: ""' not in text and "default: False" not in text
    found = re.search(r"Exit codes: (.*?)\.(?: |$)", text)
    assert found, text
    codes = {int(code) for code in re.findall(r"(?<![\w-])(\d{1,3})(?=[ ,]|$)", found[1])}
    assert 0 in codes and codes <= KNOWN, (codes, KNOWN)


def test_the_help_of_the_program_names_the_five_commands() -> None:
    said = run_cli("--help")
    for word in ("init", "up", "pair invite", "pair join", "protect"):
        assert word in said.text


def test_a_command_that_asks_a_running_node_loads_nothing_of_what_a_node_is_made_of() -> None:
    """Half of the time that each command took went into numpy, the mesh and its certificates."""
    look = (
        "import sys, replicator.app.cli.program, replicator.api.client\n"
        "print({'numpy', 'cryptography', 'replicator.net.mesh', 'replicator.store.local'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
