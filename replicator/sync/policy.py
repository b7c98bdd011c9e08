"""What a peer may ask of this site. Everything else is refused.

The table below names every message there is, so that a new one without a rule fails a test
instead of being answered. A request needs a right (`catalog/rights.py`), and most of them also
concern a snapshot: a peer may read what one of our syncs names for it, what came from it in the
first place, and what we are offering it just now.

Blocks are asked for by their hash. Whoever knows the hash knows the content, or has read the
manifest that names it; so for blocks it is enough that the peer may read anything here at all, or ask for repairs.
"""

from collections.abc import Callable
from typing import Final

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages import blocks, mesh, repair, session, snapshots, summary
from protocol.messages.registry import Message
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import EVERY_VOLUME, SiteSync, Snapshot
from replicator.catalog.terms import PUSH
from replicator.core.logging import get_logger
from replicator.net.link import Handler, Handlers, Link, Stream

ANSWER: Final = "answer"
"""Only ever sent within a conversation; as a request it is refused."""
GREETING: Final = "greeting"
"""Belongs before a link is one; as a request it is refused."""
ANY_PEER: Final = "any peer"
"""About the peer itself and the link: nothing of ours is given away."""

RULES: Final[dict[type[Message], str]] = {
    session.Hello: GREETING,
    session.Refusal: GREETING,
    session.PairJoin: GREETING,
    session.PairWelcome: GREETING,
    snapshots.OfferSnapshot: "offer",
    snapshots.SyncProgress: ANSWER,
    snapshots.Receipt: ANSWER,
    snapshots.SyncReport: ANSWER,
    snapshots.WantDiff: "read",
    snapshots.DiffBase: ANSWER,
    snapshots.DiffNumbers: ANSWER,
    snapshots.DiffNames: ANSWER,
    snapshots.ListSnapshots: ANY_PEER,  # The list holds what the asker may read, which may be nothing.
    snapshots.SnapshotList: ANSWER,
    blocks.WantBlocks: "read",
    blocks.BlocksSent: ANSWER,
    summary.SummaryOpen: "audit",
    summary.StandingRoots: "audit",
    repair.RepairBlocks: "repair",
    mesh.OfferCopy: "offer",
    mesh.PaceNotice: ANY_PEER,
    mesh.Noted: ANSWER,
    mesh.HandReceipt: "read",
    mesh.ProbeBlocks: "offer",
    mesh.EarlyBlocks: "offer",
    mesh.ProbeAnswer: ANSWER,
    mesh.WantSiteRecord: "introduce",
    mesh.SiteRecord: ANSWER,
    mesh.Introduce: "introduce",
    mesh.NewKey: ANY_PEER,
    summary.SummaryAnswers: ANSWER,
    summary.SummaryUnknown: ANSWER,
    summary.SummaryLacks: ANSWER,
    summary.SummaryCells: ANSWER,
    summary.SummaryList: ANSWER,
    summary.SummaryClose: ANSWER,
}


def names_snapshot(sync: SiteSync, snapshot: Snapshot, *, origin: SiteId, is_passive: bool) -> bool:
    """Whether a push of ours is to bring this snapshot to its peer.

    "Every volume" does not send a site its own back, nor onward what is kept passively; a sync that names the volume
    does: the way home. `origin` is the volume's, as it is called today: a record keeps the name that its site had then.
    """
    record = snapshot.record
    if sync.terms.direction != PUSH or not sync.terms.wants(record):
        return False
    if sync.volume_id == EVERY_VOLUME:
        return origin != sync.peer and not is_passive
    return record.volume_id == sync.volume_id and (not is_passive or origin == sync.peer)


class Policy:
    """Decides, for each request of a peer, whether it is answered."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def may_read(self, link: Link, snapshot: Snapshot) -> bool:
        if snapshot.snapshot_id in link.offered:
            return True
        rights, record = self._catalog.peers.rights_of(link.peer), snapshot.record
        if "read-all" in rights.may:
            return True
        if "read" not in rights.may:
            return False
        if self._catalog.current_key(record.origin) == self._catalog.current_key(link.peer):
            return True
        if record.volume_id.hex() in rights.volumes:
            return True
        rule = self._catalog.copy_rules().get(record.volume_id)
        is_passive = rule is not None and rule.is_passive
        origin = self._catalog.volume(record.volume_id).origin
        return any(
            sync.peer == link.peer and names_snapshot(sync, snapshot, origin=origin, is_passive=is_passive)
            for sync in self._catalog.syncs()
        )

    def _may_read_anything(self, link: Link) -> bool:
        rights = self._catalog.peers.rights_of(link.peer)
        if link.offered or "read-all" in rights.may:
            return True
        if "read" not in rights.may:
            return False
        named = any(sync.peer == link.peer and sync.terms.direction == PUSH for sync in self._catalog.syncs())
        return bool(named or rights.volumes or any(volume.origin == link.peer for volume in self._catalog.volumes()))

    def verdict(self, link: Link, request: Message) -> str:
        """Why a request is not answered; empty if it is."""
        rule = RULES.get(type(request))
        if rule is None or rule in (ANSWER, GREETING):
            return "that is not a question"
        if rule == ANY_PEER:
            return ""
        is_offered = bool(link.offered) and isinstance(request, snapshots.WantDiff | blocks.WantBlocks)
        rights = self._catalog.peers.rights_of(link.peer).may
        if rule not in rights and not (rule == "read" and "read-all" in rights) and not is_offered:
            return f"this site has not been given the right to {rule} here"
        match request:
            case snapshots.WantDiff(snapshot_id=snapshot_id) | mesh.HandReceipt(snapshot_id=snapshot_id):
                return self._about(link, snapshot_id)
            case summary.SummaryOpen(snapshot_id=snapshot_id):
                signed = (snapshot_id, link.peer) in self._catalog.receipts()
                return "" if signed else self._about(link, snapshot_id)
            case blocks.WantBlocks():
                # Whoever may ask for a repair gets any block by its hash that way; as a further source of one for a
                # snapshot that somebody else has offered, this site should be no slower.
                may = "repair" in rights or self._may_read_anything(link)
                return "" if may else "no sync names anything for this site"
        return ""

    def _about(self, link: Link, snapshot_id: bytes) -> str:
        """A snapshot that is not here is the handler's business: it says so, as it always did."""
        if not self._catalog.has_snapshot(snapshot_id):
            return ""
        if self.may_read(link, self._catalog.snapshot(snapshot_id)):
            return ""
        return "no sync names that snapshot for this site"

    def guard(self, handlers: Handlers) -> Handlers:
        """The same handlers, each behind its rule. A handler for something that may not be asked is our mistake."""
        for kind in handlers:
            assert RULES.get(kind, ANSWER) not in (ANSWER, GREETING), f"{kind.__name__} is answered, but has no rule"
        return {kind: self._guarded(handler) for kind, handler in handlers.items()}

    def _guarded(self, handler: Handler) -> Handler:
        async def answer(stream: Stream, request: Message) -> None:
            if why := self.verdict(stream.link, request):
                name = type(request).__name__
                get_logger().warning("request.forbidden", peer=stream.link.name, request=name, why=why)
                stream.reset(ErrorCode.FORBIDDEN, why)
                return
            await handler(stream, request)

        return answer

    async def list_snapshots(self, stream: Stream, request: Message) -> None:
        """Answer a `ListSnapshots` with what the asker may read."""
        assert isinstance(request, snapshots.ListSnapshots)
        found = [
            snapshot.signed
            for snapshot in self._catalog.snapshots(request.volume_id or None)
            if self.may_read(stream.link, snapshot)
        ]
        for at in range(0, len(found), _LIST_BATCH):
            await stream.send(snapshots.SnapshotList(records=tuple(found[at : at + _LIST_BATCH])))
        await stream.send(snapshots.SnapshotList(records=()), end=True)


_LIST_BATCH: Final = 100

Matrix = dict[str, dict[str, bool]]


def matrix(rights_of: Callable[[SiteId], frozenset[str]], peers: dict[str, SiteId]) -> Matrix:
    """For each peer and each question whether its rights reach for it; snapshots are looked at case by case."""
    questions = {cls.__name__: rule for cls, rule in RULES.items() if rule not in (ANSWER, GREETING)}
    table: Matrix = {}
    for name, site in peers.items():
        may = rights_of(site)
        table[name] = {
            question: rule == ANY_PEER or rule in may or (rule == "read" and "read-all" in may)
            for question, rule in sorted(questions.items())
        }
    return table
