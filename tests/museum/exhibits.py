"""What several exhibits use."""

import os
from pathlib import Path

from protocol.ids import split_ids
from replicator.store.local import LocalStore


def all_ids(store: LocalStore) -> set[bytes]:
    return set(split_ids(b"".join(store.ids())))


def fail_with(code: int):  # type: ignore[no-untyped-def]
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def segment_bytes_hold(root: Path, block: bytes) -> bool:
    return any(block in path.read_bytes() for path in (root / "segments").iterdir())
