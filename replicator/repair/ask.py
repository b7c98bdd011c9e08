"""ioGuardian, the asking side: fetch sound copies of broken blocks from whoever has them.

The order is what keeps repair from destroying anything: quarantine the bad copy, get a new
one, prove it, write it, flush it, read it back, and only then write the line into the audit.
The bad bytes stay in their segment until a collection removes it.

Peers are asked in the order of how well they have answered; one in ten times the order is
turned around, so that a peer that was slow once gets another chance. Three lies, and a peer
is not asked for ten minutes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.errors import BadBlock, ProtocolError, Unexpected
from protocol.ids import BlockId, SiteId
from protocol.limits import BLOCK_BODY_MAX
from protocol.messages.blocks import BlocksSent
from protocol.messages.repair import RepairBlocks
from protocol.wire.envelope import unseal, walk
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import RepairLine
from replicator.core.errors import PeerError, StoreError
from replicator.core.logging import get_logger
from replicator.core.ports import Entropy, Offload, WallClock, fraction
from replicator.net.link import Link, Stream
from replicator.store.ports import BlockStore, Fault, SealedBlock

_ASK_BLOCKS_MAX: Final = 512
_ASK_BYTES_MAX: Final = 8 * 1024 * 1024
"""What one question asks for: each answer ends in a flush, and the first of them should be back in service quickly."""
_LIES_MAX: Final = 3
_BANISHED_S: Final = 600.0
_PATIENCE_S: Final = 15.0
"""For one question. A peer that lets it pass is asked last from then on, until it has answered again."""


@dataclass(slots=True)
class _Standing:
    """How a peer has served us."""

    answered_s: float = 0.0
    lies: int = 0
    banished_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Healed:
    """What one call mended, and what it could not."""

    healed: list[Fault] = field(default_factory=list)
    unhealed: list[Fault] = field(default_factory=list)


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
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._offload = offload
        self._clock = clock
        self._entropy = entropy
        self._links = links
        self._standing: dict[SiteId, _Standing] = {}
        self._lock = trio.Lock()
        self._unended: dict[int, str] = {}
        """Lines of the audit whose end could not be written: those of one question, for none begins while none ends."""

    async def finish_audit(self) -> None:
        """At the start: lines that a crash cut short are ended by what the store says now."""
        begun = self._catalog.begun_repairs()
        lease = self._store.begin("repair")
        try:
            here = await self._offload.run(self._store.have, lease, list(dict.fromkeys(begun.values())))
        finally:
            self._store.end(lease)
        outcomes = {n: "healed before a restart" if b in here else "cut by a restart" for n, b in begun.items()}
        self._end_lines(outcomes, took_s=0.0)

    def end_owed_lines(self) -> None:
        """Write what a full disk kept out of the audit."""
        if self._unended:
            self._end_lines({}, took_s=0.0)

    def _end_lines(self, outcomes: dict[int, str], *, took_s: float) -> None:
        """A disk without room for a line must not cost the reader its block, nor the audit the line."""
        owed = {**self._unended, **outcomes}
        try:
            self._catalog.end_repairs(owed, took_s=took_s)
            self._unended = {}
        except StoreError as error:
            self._unended = owed
            get_logger().warning("repair.audit_not_ended", lines=len(owed), error=str(error))

    async def heal(self, faults: Sequence[Fault]) -> Healed:
        """Try every connected peer for every fault. What stays broken stays in quarantine, listed."""
        if not faults:
            return Healed()
        async with self._lock:
            await self._offload.run(self._store.quarantine, faults)
            lease = self._store.begin("repair")
            try:
                # Someone else may have mended some while we waited for the lock.
                sound = await self._offload.run(self._store.have, lease, [fault.block_id for fault in faults])
            finally:
                self._store.end(lease)
            todo = {fault.block_id: fault for fault in faults if fault.block_id not in sound}
            healed = [fault for fault in faults if fault.block_id in sound]
            for link in self._in_order():
                if not todo:
                    break
                for done in await self._ask_peer(link, list(todo.values())):
                    healed.append(todo.pop(done))
            self._audit_failures(list(todo.values()))
            return Healed(healed, list(todo.values()))

    async def wait_for_help(self, seconds: float) -> bool:
        """Wait until more peers are connected than now. False at once if all are, or after `seconds`."""
        before = len(self._links())
        if before >= len(self._catalog.peers.all()):
            return False
        with trio.move_on_after(seconds):
            while len(self._links()) <= before:  # noqa: ASYNC110  (links come and go; a look now and then is enough)
                await trio.sleep(0.2)
        return len(self._links()) > before

    def _in_order(self) -> list[Link]:
        now = trio.current_time()
        links = [link for link in self._links() if self._of(link).banished_until <= now]
        links.sort(key=lambda link: self._of(link).answered_s)
        if fraction(self._entropy) < 0.1:
            links.reverse()
        return links

    def _of(self, link: Link) -> _Standing:
        return self._standing.setdefault(link.peer, _Standing())

    async def _ask_peer(self, link: Link, faults: list[Fault]) -> list[BlockId]:
        done: list[BlockId] = []
        for part in _portions(faults):
            try:
                with trio.fail_after(_PATIENCE_S):
                    done += await self._ask_some(link, part)
            except (PeerError, trio.TooSlowError) as error:
                self._of(link).answered_s = _PATIENCE_S
                get_logger().warning("repair.peer_failed", peer=link.name, error=str(error) or "too slow")
                return done
            except ProtocolError as error:
                self._note_lie(link, error.why)
                return done
        return done

    def _note_lie(self, link: Link, why: str) -> None:
        standing = self._of(link)
        standing.lies += 1
        get_logger().error("repair.peer_lied", peer=link.name, why=why, lies=standing.lies)
        if standing.lies >= _LIES_MAX:
            standing.banished_until = trio.current_time() + _BANISHED_S
            standing.lies = 0

    async def _ask_some(self, link: Link, faults: list[Fault]) -> list[BlockId]:
        wanted = {fault.block_id: fault for fault in faults}
        causes = Counter(fault.cause.value for fault in faults)
        began = trio.current_time()
        request = RepairBlocks(ids=b"".join(wanted), cause=causes.most_common(1)[0][0])
        # The line is begun before the block is back: a crash in between must not lose it.
        begun = self._catalog.begin_repairs(
            [
                RepairLine(self._clock.now_ns(), b, f.kind, f.cause.value, "asked", link.name, "asking", 0.0)
                for b, f in wanted.items()
            ]
        )
        healed: set[BlockId] = set()
        outcome = "no answer"
        try:
            async with link.open(request, lane=Lane.REPAIR) as stream:
                runs = await _receive(stream, set(wanted))
            healed.update(await self._offload.run(self._put_back, runs))
            outcome = "not there"
        except ProtocolError:
            outcome = "a lie"
            raise
        finally:
            took = trio.current_time() - began
            self._end_lines({begun[b]: "healed" if b in healed else outcome for b in wanted}, took_s=took)
        if healed:
            self._of(link).answered_s = 0.7 * self._of(link).answered_s + 0.3 * took / len(healed)
        return [block for block in wanted if block in healed]

    def _put_back(self, runs: list[bytes]) -> list[BlockId]:
        """In a worker thread: prove, write, flush, read back."""
        blocks: list[SealedBlock] = []
        for run in runs:
            view, at = memoryview(run), 0
            while at < len(view):
                header, _ = unseal(view, at)
                end = at + header.sealed_bytes
                blocks.append(SealedBlock(header, view[at:end]))
                at = end
        if not blocks:
            return []
        lease = self._store.begin("repair")
        try:
            self._store.append(lease, blocks)
            self._store.commit(lease)
        finally:
            self._store.end(lease)
        return list(self._store.read([block.header.block_id for block in blocks]).sound)

    def _audit_failures(self, faults: Sequence[Fault]) -> None:
        now = self._clock.now_ns()
        lines = [RepairLine(now, f.block_id, f.kind, f.cause.value, "asked", "", "nobody has it", 0.0) for f in faults]
        if not lines:
            return
        try:
            self._catalog.add_repairs(lines)
        except StoreError as error:
            # The blocks are in quarantine, which says the same, and they will be asked for again.
            get_logger().warning("repair.audit_not_written", lines=len(lines), error=str(error))


def _portions(faults: Sequence[Fault]) -> Iterator[list[Fault]]:
    """Cut a list of faults so that no question asks for too much at once."""
    part: list[Fault] = []
    size = 0
    for fault in faults:
        part.append(fault)
        size += fault.place.length if fault.place is not None else BLOCK_BODY_MAX // 16
        if size >= _ASK_BYTES_MAX or len(part) == _ASK_BLOCKS_MAX:
            yield part
            part, size = [], 0
    if part:
        yield part


async def _receive(stream: Stream, wanted: set[BlockId]) -> list[bytes]:
    """All that the peer sends, each block once and asked for: so a peer that never stops costs no memory.

    Raises `BadBlock`, `Unexpected`.
    """
    runs: list[bytes] = []
    while (item := await stream.receive()) is not None:
        if isinstance(item, bytes):
            for _, header in walk(item):
                if header.block_id not in wanted:
                    raise BadBlock("the peer sent a block that was not asked for, or twice")
                wanted.discard(header.block_id)
            runs.append(item)
        elif isinstance(item, BlocksSent):
            return runs
        else:
            raise Unexpected(f"{type(item).__name__} among repaired blocks")
    return runs
