"""The store machine on every engine, and on the local one what only a disk can suffer."""

import contextlib
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import HEADER_BYTES, unseal
from replicator.store.local import LocalStore
from replicator.store.ports import Place
from tests.stateful.store_model import TINY_SEGMENTS, StoreModel
from tests.support.engines import Bench, LocalBench, MemoryBench
from tests.support.store import copy_ledger, replace_ledger, scrub

MEMORY = Path("/dev/shm")  # Nothing here is about power cuts, and a flush to a disk takes most of the time.


class MemoryMachine(StoreModel):
    def make_bench(self) -> Bench:
        return MemoryBench(TINY_SEGMENTS)


class LocalMachine(StoreModel):
    """A ledger that is lost or set back, and files that are cut, flipped and deleted."""

    @initialize()
    def start(self) -> None:
        self.copies: list[Path] = []
        super().start()

    def make_bench(self) -> Bench:
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.root = self.folder / "store"
        return LocalBench(self.root, TINY_SEGMENTS)

    @property
    def local(self) -> LocalStore:
        assert isinstance(self.store, LocalStore)
        return self.store

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def open(self) -> None:
        self.bench.store = self.bench.open()
        self.forget_process()

    # -- a ledger that is lost or set back ------------------------------------------------

    @rule(way=st.sampled_from(["crash", "lose the ledger", "scribble over it"]))
    def restart(self, way: str) -> None:
        self.local.close()
        self.copies.append(copy_ledger(self.root, self.folder / f"copy-{len(self.copies)}"))
        match way:
            case "scribble over it":
                for path in (self.root / "ledger").iterdir():
                    path.write_bytes(b"not a ledger, " * 20)
            case "lose the ledger":
                replace_ledger(self.root, None)
        self.open()

    @rule(data=st.data())
    @precondition(lambda self: self.copies)
    def put_an_old_ledger_back(self, data: st.DataObject) -> None:
        self.local.close()
        replace_ledger(self.root, self.copies[data.draw(st.integers(0, len(self.copies) - 1))])
        self.open()

    @rule()
    def make_the_ledger_anew(self) -> None:
        self.local.rebuild_ledger("the model says so")

    # -- damage ---------------------------------------------------------------------------

    @rule(seed=st.integers(0, 2**16), mode=st.sampled_from(["flip", "truncate", "delete"]), is_reopened=st.booleans())
    def damage_is_found_exactly_and_heals(self, seed: int, mode: str, is_reopened: bool) -> None:
        self.local.flush()
        places = {block: place for block, (place, _) in self.local.ledger.places(sorted(self.present())).items()}
        if not places:
            return
        already_bad = {fault.block_id for fault in self.store.broken()}
        rnd = random.Random(seed)
        block = rnd.choice(sorted(places))
        affected = self.damage(places, block, mode, rnd)
        if is_reopened:
            self.crash()
        faults = scrub(self.store, bytes_max=2000)
        found = {fault.block_id for fault in [*faults, *self.store.broken()]} - already_bad
        assert found == affected - already_bad
        self.store.quarantine(faults)
        self.heal(affected | already_bad)

    def damage(self, places: dict[BlockId, Place], block: BlockId, mode: str, rnd: random.Random) -> set[BlockId]:
        place = places[block]
        path = self.local.files.path(place.segment)
        if mode == "delete":
            path.unlink()
            return {name for name, other in places.items() if other.segment == place.segment}
        if mode == "truncate":
            end = place.offset + rnd.randrange(place.length)
            with path.open("r+b") as file:
                file.truncate(end)
            return {
                name for name, other in places.items()
                if other.segment == place.segment and other.offset + other.length > end
            }  # fmt: skip
        data = bytearray(path.read_bytes())
        at = place.offset + rnd.choice([rnd.randrange(HEADER_BYTES), rnd.randrange(place.length)])
        data[at] ^= 1 << rnd.randrange(8)
        with path.open("r+b") as file:
            file.write(data)
        with contextlib.suppress(ProtocolError):
            # LZ4 can say the same in several ways: then the body is right, and nothing is broken.
            unseal(data, place.offset)
            return set()
        return {block}


def _settings() -> settings:
    return settings(max_examples=3 * (settings.default or settings()).max_examples, stateful_step_count=30)


TestLocalMachine = LocalMachine.TestCase
TestLocalMachine.settings = _settings()
TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = _settings()
