"""What must happen *sometimes*: proof that the rare paths are walked, and not only the usual ones.

A simulation in which no peer ever lies proves nothing about lying peers. Each name here has to be
reached by some seed of a night; `scripts/sim` lists those that were not, and fails.

Most are read off the log, because a log line is a promise to a person that this has happened.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SOMETIMES: Final[dict[str, str]] = {
    "snapshot of a tree": "a folder was taken",
    "snapshot of an image": "an image was taken",
    "snapshot by schedule": "nobody asked for it",
    "snapshot of several volumes": "a system snapshot",
    "received from nothing": "a first copy",
    "received from a base": "a difference",
    "received without a block": "the receiver had all of it",
    "sent ahead": "blocks went while their snapshot was still being taken",
    "sent ahead and stopped": "and the line broke, or the peer could not take them",
    "finished by others": "whoever offered it was gone",
    "passed on": "a copy went on to a third site",
    "pulled": "a sync that fetched",
    "offered again": "the receiver had the snapshot, and signed once more",
    "sync failed": "a sync job ended with an error",
    "sync after a failure": "and later one succeeded",
    "sync waited for a link": "a link broke in the middle of an offer",
    "throttle waited": "a bandwidth rule held something back",
    "sender told its share": "a site was told how fast it may send",
    "crash at a checkpoint": "a machine was switched off while it waited",
    "crash before a durable step": "just before something was written",
    "crash after a durable step": "just after something was written, and before anybody was told",
    "crash with a job running": "work was cut",
    "crash while receiving": "with a peer's snapshot half here",
    "crash while collecting": "with a collection under way",
    "unsynced write survived": "what was not committed was there after a crash",
    "unsynced write lost": "what was not committed was gone after a crash",
    "job taken up again": "a job of an earlier life was carried on",
    "stopped in order": "a node said goodbye",
    "link broke": "a reset",
    "link fell silent": "nothing was heard for too long",
    "dial refused": "nobody listened there",
    "one-way cut": "only one direction was blocked",
    "rot found": "a scrub met a corrupt block",
    "loss found": "a scrub met a missing block",
    "block healed": "a peer had a sound copy",
    "manifest healed": "a node of a map was healed",
    "record healed": "a snapshot's record was healed",
    "nobody has it": "a block could not be healed when it was first asked for",
    "healed while restoring": "a reader waited a moment and got the right bytes",
    "repair served": "a peer's block was healed from here",
    "repair refused": "a peer's answer to a repair was a lie",
    "receive refused": "a peer's blocks were not what was asked for",
    "store full": "a disk had no room for a block",
    "database full": "a disk had no room for a row",
    "job not written": "a job ran although its row could not be kept",
    "condemned": "a collection found something that nothing needs",
    "swept": "a collection let something go",
    "revived": "something condemned was needed again",
    "collection undone": "somebody changed their mind",
    "collection waited": "a writer was under way during a collection",
    "tidied while somebody wrote": "room was made just while the next version came",
    "collection gave up": "a mark could not read something, and nothing was let go",
    "pruned": "a keep rule let a snapshot go",
    "hold refused a delete": "a held snapshot was to be deleted",
    "held under a wrong clock": "a held snapshot while its site's clock was hours or years off",
    "deleted": "an operator deleted a snapshot",
    "revoked": "a peer was trusted no more",
    "turned away": "a site that is trusted no more knocked",
    "paired again": "and was trusted again",
    "code used twice": "a pairing code was refused",
    "clock jumped ahead": "a wall clock was wrong by hours or days",
    "clock jumped back": "the other way",
    "catalogue lost": "a machine lost its catalogue",
    "catalogue recovered": "and found the snapshots in its blocks",
    "peer reborn": "a peer noticed, and forgot its receipts",
    "job cancelled": "an operator stopped a job",
    "sync paused": "an operator paused a sync",
    "spoke the version before": "two sites had only the older version of the protocol in common",
    "upgraded in mid-run": "a site came back with the newer release",
    "put back to the version before": "a site came back with the older release",
    "key change begun": "somebody made a new key for a site",
    "key changed": "a peer took the new key for the old one",
    "right taken": "a peer was to do less",
    "right refused": "and was refused what it asked",
    "audit agreed": "summaries proved two sites equal",
    "audit differed": "summaries found a difference",
    "tenant came": "a volume was protected for a tenant, later than the others or again",
    "tenant left": "a volume was protected no more",
    "a tenant's snapshots deleted": "and what was taken of it was deleted where it came from",
    "label changed": "a volume became another tenant's",
    "label changed while a snapshot was taken": "just while it was read",
    "filter changed": "an order was for other tenants from then on",
    "filter changed while it was carried out": "just while it was at work",
    "carried for a tenant": "an order for one tenant brought a snapshot of that tenant",
    "fetched for a tenant": "and an order that fetches did",
    "kept from another tenant's site": "a site with such an order was not given another tenant's snapshot",
    "snapshot by promise": "a continuous sync took one for itself",
    "waited for its window": "an order had something to bring and its hours had not come",
    "site burnt": "all that was on a machine was gone, its key too",
    "another site went on": "with a volume that it had restored from its own copy",
    "came home": "what was done meanwhile was put in place at the first site",
    "fetched home": "by a fetch that nobody at the other site had to allow beforehand",
}

FROM_LOG: Final[dict[str, str]] = {
    "early.sent": "sent ahead",
    "early.stopped": "sent ahead and stopped",
    "repair.served": "repair served",
    "repair.peer_lied": "repair refused",
    "pair.refused": "code used twice",
    "link.turned_away": "turned away",
    "catalog.recovered": "catalogue recovered",
    "peer.reborn": "peer reborn",
    "job.not_written": "job not written",
    "job.cancelled": "job cancelled",
    "key.changed": "key changed",
    "request.forbidden": "right refused",
}


@dataclass(slots=True)
class Markers:
    """Which of them were reached, and how often."""

    reached: Counter[str] = field(default_factory=Counter)

    def sometimes(self, name: str) -> None:
        assert name in SOMETIMES, name
        self.reached[name] += 1

    def read(self, event: str, data: Mapping[str, Any]) -> None:
        """What one line of log proves."""
        if (name := FROM_LOG.get(event)) is not None:
            self.sometimes(name)
        for matches, name in _READERS.get(event, ()):
            if matches(data):
                self.sometimes(name)


def _error_has(*words: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: any(word in str(data.get("error", "")) for word in words)


def _is(kind: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: data.get("kind") == kind


def _counts(key: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: bool(data.get(key))


_FULL = _error_has("bytes are taken")
_READERS: Final[dict[str, tuple[tuple[Callable[[Mapping[str, Any]], bool], str], ...]]] = {
    "snapshot.received": (
        (lambda data: not data["blocks"], "received without a block"),
        (lambda data: data["peer"] == "other sites", "finished by others"),
    ),
    "job.failed": (
        (_is("sync"), "sync failed"),
        (_FULL, "store full"),
        (_error_has("the disk is full"), "database full"),
        (lambda data: data["kind"] == "gc", "collection gave up"),
        (_error_has("sent a block that nobody asked for", "BadBlock"), "receive refused"),
    ),
    "scrub.finding": (
        (lambda data: data["cause"] == "corrupt", "rot found"),
        (lambda data: data["cause"] == "missing", "loss found"),
    ),
    "request.failed": ((_FULL, "store full"), (_error_has("the disk is full"), "database full")),
    "worker.failed": ((_error_has("the disk is full"), "database full"),),
    "job.done": (
        (_counts("blocks_condemned"), "condemned"),
        (_counts("blocks_swept"), "swept"),
        (_counts("blocks_revived"), "revived"),
        (_counts("undone"), "collection undone"),
        (_counts("writers_waited_for"), "collection waited"),
        (_counts("pruned"), "pruned"),
        (lambda data: data["kind"] == "audit" and data["peer_lacks"] == 0, "audit agreed"),
        (lambda data: data["kind"] == "audit" and data["peer_lacks"] > 0, "audit differed"),
        (lambda data: str(data["job"]).startswith("scheduled-"), "snapshot by schedule"),
        (lambda data: str(data["job"]).startswith("continuous-"), "snapshot by promise"),
    ),
    "link.closed": (
        (lambda data: "reset" in data["why"], "link broke"),
        (lambda data: "nothing was heard" in data["why"], "link fell silent"),
    ),
}
