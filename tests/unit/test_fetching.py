"""How much a receive asks for at once: what is under way is lost when the receiver is killed. And who is waited for."""

from typing import Any, cast

import pytest
import trio

from protocol.ids import BlockId
from protocol.limits import KIB, MIB
from protocol.wire.frames import Lane
from replicator.sync.fetch import REQUESTS, REQUESTS_SHARED, Fetcher
from replicator.sync.sources import Batch, Source

ANYBODY = cast(Any, object())


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("wanted", [10, 10_000, 1_000_000])
@pytest.mark.parametrize("block_bytes", [500, 8 * KIB, 64 * KIB, 300 * KIB, 1 * MIB])
def test_all_that_is_asked_for_is_no_more_than_may_be_lost(block_bytes: int, wanted: int, others: int) -> None:
    fetcher = Fetcher(
        ANYBODY, others=[ANYBODY] * others, store=ANYBODY, lease=ANYBODY, offload=ANYBODY, lane=Lane.SYNC,
        receiving=ANYBODY,
    )  # fmt: skip
    fetcher.counts.wanted, fetcher.counts.received = wanted, 100
    fetcher.counts.sealed_bytes = 100 * block_bytes
    requests = REQUESTS_SHARED * (1 + others) if others else REQUESTS
    asked = fetcher._request_ids() * requests * block_bytes
    assert asked <= max(8 * MIB, wanted * block_bytes // 100, requests * block_bytes)


async def test_several_may_wait_for_blocks_at_once_and_none_is_forgotten() -> None:
    """Whoever looks whether others have the root of a map waits beside the one who fetches what the map names."""

    class Empty:
        def have(self, _: object, ids: list[BlockId]) -> set[BlockId]:
            return set()

    class Inline:
        async def run(self, work: Any, *args: Any) -> Any:
            return work(*args)

    class Peer:
        peer, is_paced = bytes(32), False

    class Bringing(Fetcher):
        """Every batch takes a moment, the first the longest."""

        async def _fetch(self, source: Source, batch: Batch) -> None:
            await trio.sleep(0.3 if batch.ids == [root] else 0.05)
            self._under_way.difference_update(batch.ids)

    root, other = BlockId(b"r" * 32), BlockId(b"o" * 32)
    fetcher = Bringing(
        cast(Any, Peer()), others=(), store=cast(Any, Empty()), lease=ANYBODY, offload=cast(Any, Inline()),
        lane=Lane.SYNC, receiving=ANYBODY,
    )  # fmt: skip
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.run)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(fetcher.bring, [root])
                await trio.lowlevel.checkpoint()
                await fetcher.want([other])
                waiting.start_soon(fetcher.drain)
                waiting.start_soon(fetcher.bring, [other])
            nursery.cancel_scope.cancel()
    assert not fetcher._under_way
