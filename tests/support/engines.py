"""Every engine behind the store port, as tests want it: opened again, rotting, and failing to read now and then."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol
from unittest import mock

from protocol.ids import BlockId
from replicator.store import verify
from replicator.store.collect import Collectable, Collector
from replicator.store.config import StoreConfig
from replicator.store.local import LocalStore
from replicator.store.memory import MemoryDisk, MemoryStore
from replicator.store.ports import BlockStore, Place
from tests.support.blocks import flipped
from tests.support.clocks import FakeMonotonic, FakeWallClock
from tests.support.store import SMALL_SEGMENTS, damage, lose, open_store

ENGINES: Final = ("local", "memory")


class Engine(BlockStore, Collectable, Protocol):
    """A whole engine: what writers, readers, the scrub and the collector ask of it."""


class MoodyDisk(MemoryDisk):
    """A memory disk whose next reads go wrong: by subclassing alone, as the simulation does it."""

    __slots__ = ("moods",)

    def __init__(self) -> None:
        super().__init__()
        self.moods: list[str] = []

    def read_at(self, place: Place) -> bytes:
        data = super().read_at(place)
        match self.moods.pop(0) if self.moods else "":
            case "wrong":
                return flipped(data, 8 * (len(data) - 1))
            case "refuses":
                raise OSError(5, "a bad moment")
        return data


class Bench:
    """One store under test, with the powers of the world around it."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.monotonic = FakeMonotonic()
        self.clock = FakeWallClock()
        self.why_off = ""
        self.store: Engine

    @staticmethod
    def of(engine: str, root: Path, config: StoreConfig = SMALL_SEGMENTS) -> "Bench":
        return LocalBench(root, config) if engine == "local" else MemoryBench(config)

    def open(self) -> Engine:
        raise NotImplementedError

    def crash(self) -> None:
        """The process is gone, and another one has opened the store."""
        self.store.close()
        self.store = self.open()

    def collector(self) -> Collector:
        return Collector(self.store, clock=self.clock, why_off=lambda: self.why_off)

    def rot(self, block: BlockId) -> None:
        """One bit of its payload is not what it was."""
        raise NotImplementedError

    def lose(self, block: BlockId) -> None:
        """Its bytes are gone: zeros, or nothing."""
        raise NotImplementedError

    @contextmanager
    def bad_moments(self, moods: Sequence[str]) -> Iterator[None]:
        """The next reads give `wrong` bytes, or the disk `refuses`; then all is well again."""
        raise NotImplementedError
        yield

    def forget_row(self, block: BlockId) -> None:
        """The index has lost a block that is there."""
        raise NotImplementedError


class LocalBench(Bench):
    def __init__(self, root: Path, config: StoreConfig) -> None:
        super().__init__(config)
        self.root = root
        self.store: LocalStore = self.open()

    def open(self) -> LocalStore:
        return open_store(self.root, config=self.config, clock=self.clock, monotonic=self.monotonic)

    def rot(self, block: BlockId) -> None:
        damage(self.store, block)

    def lose(self, block: BlockId) -> None:
        lose(self.store, block)

    @contextmanager
    def bad_moments(self, moods: Sequence[str]) -> Iterator[None]:
        left = list(moods)
        real: Callable[[int, int, int], bytes] = verify.os.pread

        def moody(handle: int, count: int, offset: int) -> bytes:
            data = real(handle, count, offset)
            if not os.readlink(f"/proc/self/fd/{handle}").endswith(".seg"):
                return data  # The ledger reads as well.
            match left.pop(0) if left else "":
                case "wrong":
                    return flipped(data, 8 * (len(data) - 1))
                case "refuses":
                    raise OSError(5, "a bad moment")
            return data

        with mock.patch.object(verify.os, "pread", moody):
            yield

    def forget_row(self, block: BlockId) -> None:
        """By the only verbs that take one away: sentenced, and swept."""
        self.store.ledger.revive([block])
        self.store.ledger.condemn([block], epoch=0, now_ns=0)
        self.store.ledger.sweep([block], epoch_below=1)


class MemoryBench(Bench):
    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.disk = MoodyDisk()
        self.store: MemoryStore = self.open()

    def open(self) -> MemoryStore:
        return MemoryStore(self.disk, self.config, clock=self.clock, monotonic=self.monotonic)

    def rot(self, block: BlockId) -> None:
        self.disk.rot(block, bit=60 * 8)

    def lose(self, block: BlockId) -> None:
        self.disk.lose(block)

    @contextmanager
    def bad_moments(self, moods: Sequence[str]) -> Iterator[None]:
        self.disk.moods = list(moods)
        yield
        self.disk.moods = []

    def forget_row(self, block: BlockId) -> None:
        self.disk.forget(block)
