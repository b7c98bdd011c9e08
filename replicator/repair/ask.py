"""ioGuardian, the asking side: fetch sound copies of broken blocks from whoever has them.

    who needs blocks  →  portions  →  a peer's answers, several on their way at once  →  the store (`putback.py`)
                                                      └─────────────────────────────→  whoever reads

A portion is what one question asks for. While one is proven and written by a worker thread others are on the wire, from
several peers if there are (`peers.py`). A block is asked for once, however many want it: who comes
second waits for the first one's answer.

`heal` returns when what it could mend is durable. `bring` is for readers: it hands out the proven bytes as
they came, without a second look at the disk, and their flush is shared with those of the next ones.

Whoever waits for a block is never held back by a rate. What is mended at leisure goes past a bucket, `repair_rate`:
a whole store that comes back would otherwise fill the wire for hours, ahead of everything that a rule binds.
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from protocol.errors import BadBlock, ProtocolError, Unexpected
from protocol.ids import BlockId, SiteId
from protocol.limits import BLOCK_BODY_MAX
from protocol.messages.blocks import BlocksSent
from protocol.messages.repair import RepairBlocks
from protocol.wire.envelope import Buffer, walk
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.core.errors import PeerError, StoreError
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.core.ports import Entropy, Offload, WallClock
from replicator.core.throttle import TokenBucket
from replicator.net.link import Link
from replicator.repair.peers import PATIENCE_S, Peers
from replicator.repair.putback import SETTLE_BYTES, PutBack
from replicator.store.ports import BlockStore, Fault

_ASK_BLOCKS_MAX: Final = 512
_ASK_BYTES_MAX: Final = 8 * 1024 * 1024
"""What one question asks for: it is in memory until all of it has come, because of a lie nothing is believed."""
_QUESTIONS_MAX: Final = 4
"""On their way at once, for everybody together: enough to keep the wire, two cores and a disk busy."""
_RATE_MIN: Final = 64 * 1024
"""Bytes a second. A peer that is slower loses the rest of its question, if only to be asked for it again."""


@dataclass(frozen=True, slots=True)
class Healed:
    """What one call mended, and what it could not."""

    healed: list[Fault] = field(default_factory=list)
    unhealed: list[Fault] = field(default_factory=list)


class _Portion:
    """Blocks that are asked for together, of one peer after the other until one has them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.left = {fault.block_id: fault for fault in faults}
        self.ids = list(self.left)
        self.bodies: dict[BlockId, Buffer] = {}
        self.is_answered = False
        """It went to its end. One that was cut says nothing about what it did not bring."""
        self.over = trio.Event()


class Healer:
    """Mends broken blocks of this node's store."""

    def __init__(
        self,
        *,
        store: BlockStore,
        catalog: Catalog,
        offload: Offload,
        clock: WallClock,
        entropy: Entropy,
        links: Callable[[], Sequence[Link]],
        leisure: TokenBucket,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._offload = offload
        self._peers = Peers(links, entropy)
        self._leisure = leisure
        """What binds questions that no reader waits for."""
        self._put_back = PutBack(store=store, catalog=catalog, clock=clock)
        self._under_way: dict[BlockId, _Portion] = {}
        self._room = trio.Semaphore(_QUESTIONS_MAX)
        self._settling = trio.Lock()
        self._block_bytes = BLOCK_BODY_MAX // 16
        """What a block is thought to take. Falls slowly: after some small ones a question must not be for gigabytes."""
        self._readers = 0
        self._waiting_readers = 0

    async def finish_audit(self) -> None:
        """At the start: lines that a crash cut short are ended by what the store says now."""
        await self._offload.run(self._put_back.end_lines_of_last_time)

    async def finish_rest(self) -> None:
        """Write what a full disk kept out of the audit, and settle what a reader that was cancelled has left."""
        self._put_back.end_owed_lines()
        if not self._readers and not self._put_back.is_settled:
            await self._settle_for_readers()

    @property
    def is_awaited(self) -> bool:
        """A reader waits for blocks just now: whoever mends at leisure does better to let it go first."""
        return self._waiting_readers > 0

    @property
    def all_believed_in_s(self) -> float:
        """In how many seconds everybody may be asked again, liars too."""
        return self._peers.all_believed_in_s()

    # -- what is asked of us --------------------------------------------------------------

    async def heal(self, faults: Sequence[Fault], *, tell: Callable[[int], None] | None = None) -> Healed:
        """Try every connected peer for every fault. What stays broken stays in quarantine, listed.

        `tell` hears, again and again, of how many more blocks it is known whether they can be had.
        """
        if not faults:
            return Healed()
        await self._quarantine(faults)
        await self._seek(faults, tell=tell)
        await self._settle()
        lacking = set(await self._offload.run(self._put_back.absent, [fault.block_id for fault in faults]))
        return Healed(
            [fault for fault in faults if fault.block_id not in lacking],
            [fault for fault in faults if fault.block_id in lacking],
        )

    async def bring(self, faults: Sequence[Fault]) -> dict[BlockId, Buffer]:
        """The bodies of those that peers have, proven. The store has them as well, unless it cannot take any."""
        async with self.reading():
            self._waiting_readers += 1
            try:
                await self._quarantine(faults)
                return await self._seek(faults, is_read=True)
            finally:
                self._waiting_readers -= 1

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Around a long read: what it mends is made durable in large parts, and the rest with the last reader."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
        is_much = self._put_back.unsettled_bytes >= SETTLE_BYTES
        if is_much or not (self._readers or self._put_back.is_settled):
            await self._settle_for_readers()

    async def wait_for_help(self, seconds: float) -> bool:
        """Wait until more peers are connected than now. False at once if all are, or after `seconds`."""
        before = len(self._peers.links())
        if before >= len(self._catalog.peers.all()):
            return False
        with trio.move_on_after(seconds):
            while len(self._peers.links()) <= before:  # noqa: ASYNC110  (a look now and then is enough)
                await trio.sleep(0.2)
        return len(self._peers.links()) > before

    async def _quarantine(self, faults: Sequence[Fault]) -> None:
        placed = [fault for fault in faults if fault.place is not None]
        if placed:
            await self._offload.run(self._store.quarantine, placed)

    async def _settle_for_readers(self) -> None:
        """They have their bytes: a disk that cannot keep them is no reason to fail."""
        try:
            await self._settle()
        except StoreError as error:
            get_logger().warning("repair.not_kept", error=str(error))

    async def _settle(self) -> None:
        """Return when everything that was written before is durable, and its lines have their ends."""
        async with self._settling:
            await self._offload.run(self._put_back.settle)

    # -- portions -------------------------------------------------------------------------

    async def _seek(
        self, faults: Sequence[Fault], *, is_read: bool = False, tell: Callable[[int], None] | None = None
    ) -> dict[BlockId, Buffer]:
        """Have all of these asked for. Returns the bodies of what came, for a reader; nothing for others."""
        found: dict[BlockId, Buffer] = {}
        todo = deque({fault.block_id: fault for fault in faults}.values())
        while todo:
            theirs: dict[_Portion, list[Fault]] = {}
            async with open_work_nursery() as nursery:
                while todo:
                    if not is_read:
                        await self._wait_for_leisure()
                    await self._room.acquire()
                    portion = self._next_portion(todo, theirs, bytes_max=self._portion_bytes(is_read=is_read))
                    nursery.start_soon(self._work_off, portion, found if is_read else None, tell)
            for portion, wanted in theirs.items():
                await portion.over.wait()
                if is_read:
                    found.update(
                        (f.block_id, portion.bodies[f.block_id]) for f in wanted if f.block_id in portion.bodies
                    )
                if not portion.is_answered:
                    todo += [fault for fault in wanted if fault.block_id not in portion.bodies]
        return found

    async def _wait_for_leisure(self) -> None:
        """Before a question has its room, so that a reader's never waits behind it."""
        while (delay := self._leisure.delay_s()) > 0:
            self._leisure.note_wait(delay)
            await trio.sleep(delay)

    def _portion_bytes(self, *, is_read: bool) -> int:
        """A peer answers a question as fast as it can, so a small rate asks for little at a time: a second of it."""
        rate = 0 if is_read else self._leisure.rate_bytes
        return min(_ASK_BYTES_MAX, rate) if rate else _ASK_BYTES_MAX

    def _next_portion(self, todo: deque[Fault], theirs: dict[_Portion, list[Fault]], *, bytes_max: int) -> _Portion:
        """Take from `todo` what one question may ask for. What is under way already is added to `theirs`."""
        some: list[Fault] = []
        size = 0
        while todo and size < bytes_max and len(some) < _ASK_BLOCKS_MAX:
            fault = todo.popleft()
            if (other := self._under_way.get(fault.block_id)) is not None:
                theirs.setdefault(other, []).append(fault)
                continue
            some.append(fault)
            size += self._size_of(fault)
        portion = _Portion(some)
        self._under_way.update(dict.fromkeys(portion.ids, portion))
        return portion

    def _size_of(self, fault: Fault) -> int:
        return fault.place.length if fault.place is not None else self._block_bytes

    async def _work_off(
        self, portion: _Portion, found: dict[BlockId, Buffer] | None, tell: Callable[[int], None] | None
    ) -> None:
        try:
            if portion.left:
                # Somebody else may have mended some before they were ours to ask for.
                absent = set(await self._offload.run(self._put_back.absent, portion.ids))
                portion.left = {block: fault for block, fault in portion.left.items() if block in absent}
            if found is None:
                self._leisure.take(sum(map(self._size_of, portion.left.values())))
            await self._ask_around(portion, is_read=found is not None)
            portion.is_answered = True
        finally:
            for block in portion.ids:
                del self._under_way[block]
            portion.over.set()
            self._room.release()
            if found is not None:
                found.update(portion.bodies)
        if tell is not None:
            tell(len(portion.ids))
        if found is None and self._put_back.unsettled_bytes >= SETTLE_BYTES:
            await self._settle()

    async def _ask_around(self, portion: _Portion, *, is_read: bool) -> None:
        asked: set[SiteId] = set()
        while portion.left and (link := self._peers.choose(without=asked)) is not None:
            before = len(portion.left)
            is_late = await self._ask(link, portion, is_read=is_read)
            if not (is_late and len(portion.left) < before):
                asked.add(link.peer)  # One that is merely slow goes on, as long as nobody is better.
        self._put_back.add_failures(list(portion.left.values()))

    # -- one question ---------------------------------------------------------------------

    async def _ask(self, link: Link, portion: _Portion, *, is_read: bool) -> bool:
        """Ask one peer for what is left. Answers whether it was too slow to bring all that it has."""
        faults = dict(portion.left)
        lines = await self._offload.run(
            partial(self._put_back.begin_lines, list(faults.values()), peer=link.name, is_read=is_read)
        )
        began = trio.current_time()
        outcome, answer = "no answer", _Answer(set(faults))
        self._peers.begin(link)
        try:
            try:
                await self._converse(link, faults, answer)
                outcome = "not there"
            except (PeerError, trio.TooSlowError) as error:
                self._peers.note_failure(link, str(error) or "too slow")
            come = await self._offload.run(
                partial(
                    self._put_back.take, answer.runs, faults, lines, took_s=trio.current_time() - began, is_read=is_read
                )
            )
            for block in come.bodies:
                del portion.left[block]
                if lines is not None and come.is_kept:
                    del lines[block]  # It ends with the flush.
            if not come.is_kept:
                outcome = "could not be kept"
            portion.bodies.update(come.bodies)
        except ProtocolError as error:
            outcome = "a lie"
            self._peers.note_lie(link, error.why)
            return False
        finally:
            self._peers.end(link)
            self._put_back.end_lines(list((lines or {}).values()), outcome, took_s=trio.current_time() - began)
        if come.bodies:
            block_bytes = come.sealed_bytes // len(come.bodies)
            self._block_bytes = max(1, block_bytes, (3 * self._block_bytes + block_bytes) // 4)
            if outcome != "no answer":
                self._peers.note_answer(link, a_block_s=(trio.current_time() - began) / len(come.bodies))
        return outcome == "no answer"

    async def _converse(self, link: Link, faults: dict[BlockId, Fault], answer: "_Answer") -> None:
        causes = Counter(fault.cause.value for fault in faults.values())
        request = RepairBlocks(ids=b"".join(faults), cause=causes.most_common(1)[0][0])
        async with link.open(request, lane=Lane.REPAIR) as stream:
            try:
                with trio.fail_after(PATIENCE_S + len(faults) * self._block_bytes / _RATE_MIN):
                    is_over = False
                    while not is_over:
                        with trio.fail_after(PATIENCE_S):
                            is_over = answer.take(await stream.receive())
            except (PeerError, trio.TooSlowError):
                for run in stream.arrived_blocks():
                    answer.take(run)
                raise


class _Answer:
    """What a peer has sent so far, each block once and asked for: so one that never stops costs no memory."""

    def __init__(self, wanted: set[BlockId]) -> None:
        self._wanted = wanted
        self.runs: list[bytes] = []

    def take(self, item: object) -> bool:
        """Answers whether this was the last. Raises `BadBlock`, `Unexpected`."""
        if item is None or isinstance(item, BlocksSent):
            return True
        if not isinstance(item, bytes):
            raise Unexpected(f"{type(item).__name__} among repaired blocks")
        for _, header in walk(item):
            if header.block_id not in self._wanted:
                raise BadBlock("the peer sent a block that was not asked for, or twice")
            self._wanted.discard(header.block_id)
        self.runs.append(item)
        return False


def in_disk_order(faults: Iterable[Fault]) -> list[Fault]:
    """As they lay here: a peer that got them in the same order reads them one after the other."""
    return sorted(faults, key=disk_order)


def disk_order(fault: Fault) -> tuple[int, int, BlockId]:
    place = fault.place
    return (place.segment, place.offset, fault.block_id) if place is not None else (0, 0, fault.block_id)
