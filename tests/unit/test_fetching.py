"""How much a receive asks for at once: what is under way is lost when the receiver is killed."""

from typing import Any, cast

import pytest

from protocol.limits import KIB, MIB
from protocol.wire.frames import Lane
from replicator.sync.fetch import REQUESTS, REQUESTS_SHARED, Fetcher

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
