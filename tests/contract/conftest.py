"""One bench for each engine: the suites in this folder ask all of them the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import ENGINES, Bench


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.of(request.param, tmp_path / "store")
    yield bench
    bench.store.close()
