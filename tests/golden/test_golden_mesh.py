"""The bytes of the mesh's messages, frozen with version 2 of the protocol."""

import json
from pathlib import Path

import pytest

from protocol.messages import mesh
from protocol.messages.registry import Message, decode, encode, registered
from tests.golden.vectors import sample

FROZEN = {
    name: bytes.fromhex(text) for name, text in json.loads(Path(__file__).with_name("v2-mesh.json").read_text()).items()
}
MESSAGES = [cls for cls in registered().values() if cls.__module__ == mesh.__name__]


def test_every_message_of_the_mesh_is_frozen() -> None:
    assert FROZEN.keys() == {cls.__name__ for cls in MESSAGES}


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_a_frozen_message_is_read_and_written_back(cls: type[Message]) -> None:
    data = FROZEN[cls.__name__]
    assert decode(data) == sample(cls)
    assert encode(decode(data)) == data == encode(sample(cls))
    assert cls.since == 2, "a site that speaks version 1 would close the connection over it"
