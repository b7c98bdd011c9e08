"""What jobs work with. `app/node.py` fills it in; nothing here names a concrete engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol.ids import SiteId
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import Signer
from replicator.core.ballast import Ballast, NoBallast
from replicator.core.brake import ClockBrake
from replicator.core.ports import Entropy, Offload, WallClock
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import Sources
from replicator.net.mesh import Mesh
from replicator.repair.ask import Healer
from replicator.repair.pace import ScrubPromise
from replicator.repair.scrub import Scrubber
from replicator.store.collect import Collector
from replicator.store.ports import BlockReader, BlockStore
from replicator.sync.audit import Auditor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One node's working parts. Without `mesh` and `healer` the node is offline: a store under a command."""

    store: BlockStore
    collector: Collector
    catalog: Catalog
    reader: BlockReader
    offload: Offload
    clock: WallClock
    entropy: Entropy
    site_id: SiteId
    site_name: str
    sign: Signer
    scrubber: Scrubber
    scrub_promise: ScrubPromise
    healer: Healer | None
    mesh: Mesh | None
    auditor: Auditor
    ingest: IngestConfig
    sources: Sources
    own_folder: Path | None
    """The node's own files: nothing is taken from there, or restored to it. None for a node without files."""
    memo_folder: Path | None
    """None where nothing can be remembered: then every file is read each time."""
    grace_s: float
    ballast: Ballast | NoBallast
    brake: ClockBrake
    """What a clock decides to delete is not deleted while it gives a reason."""
    wake_scheduler: Callable[[], None]
