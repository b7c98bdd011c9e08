"""What is measured, by name. Each scenario's first sentence is what `--list` shows."""

from typing import Final

from bench.harness import Scenario
from bench.scenarios.copies import copies, store_to_store
from bench.scenarios.mesh import distance, many_peers, rebuild, reconcile, repair, restore_from_peer
from bench.scenarios.node import collection, ingest, random_reads, restore, scrub
from bench.scenarios.size import many_snapshots, store_size

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        copies, store_to_store, ingest, scrub, random_reads, restore, restore_from_peer, repair, rebuild, collection,
        many_snapshots, many_peers, distance, reconcile, store_size,
    )
}  # fmt: skip
