"""`config.toml`: everything may be left out, and every mistake is named with its key."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from replicator.app.cli.node import _toml
from replicator.app.config import CONFIG_TEMPLATE, NodeConfig, StateFolder, load_config, parse_config
from replicator.core.errors import ConfigError


def test_a_name_is_all_that_a_configuration_needs() -> None:
    assert parse_config({"name": "home"}, where="x") == NodeConfig(name="home")


def test_the_template_says_the_defaults() -> None:
    told = {
        "listen": "0.0.0.0:7421",
        "http": "127.0.0.1:7422",
        "rate_out": "none",
        "rate_in": "none",
        "segment_size": "64MiB",
    }
    text = CONFIG_TEMPLATE.format(name="home", advertise="[]", **{key: _toml(value) for key, value in told.items()})
    assert parse_config(tomllib.loads(text), where="x") == NodeConfig(name="home")


@pytest.mark.parametrize(("key", "near"), [("lisen", "listen"), ("rateout", "rate_out"), ("gc-grace", "gc_grace")])
def test_an_unknown_key_names_its_nearest_neighbour(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key `{key}`") as caught:
        parse_config({"name": "home", key: "1"}, where="config.toml")
    assert caught.value.hint == f"Did you mean `{near}`?"


def test_an_unknown_key_without_a_neighbour_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "home", "zzz": 1}, where="x")
    assert "listen" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("listen", "nowhere"), ("listen", 7), ("http", "x"), ("advertise", ["a"]), ("advertise", "a:1"),
        ("rate_out", "fast"), ("rate_in", "10 apples"), ("gc_grace", "soon"), ("scrub_every", "5 minutes"),
        ("segment_size", "big"), ("reserve", "-1"), ("log_level", "loud"), ("name", "no spaces"), ("name", ""),
        ("name", 5), ("protocol", "0"), ("protocol", "99"), ("protocol", "new"), ("workers", "many"), ("workers", "65"),
        ("repair_rate", "slowly"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "home", key: value}, where="config.toml")
    assert caught.value.exit_code == 78
    assert key in caught.value.message or str(value) in caught.value.message


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'"])
def test_a_file_that_is_no_toml_is_named_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path)


def test_a_folder_without_a_node_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.toml")
    assert "replicator init" in caught.value.hint


@pytest.mark.parametrize("text", ['a"b', "back\\slash", "new\nline", "ümlaut", "'"])
def test_whatever_is_typed_for_a_setting_stays_inside_its_quotes(text: str) -> None:
    assert tomllib.loads(f"key = {_toml(text)}") == {"key": text}


def test_the_socket_lies_in_the_folder_unless_its_path_would_be_too_long_for_one(tmp_path: Path) -> None:
    assert StateFolder(Path("/s")).socket == Path("/s/api.sock")
    long = StateFolder(tmp_path / ("x" * 120))
    assert len(str(long.socket)) < 108
    assert long.socket != StateFolder(tmp_path / ("y" * 120)).socket
