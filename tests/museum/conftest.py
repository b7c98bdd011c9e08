"""Where every exhibit begins: a store of its own, or one of each engine, or a whole node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import ENGINES, Bench
from tests.support.nodes import Site, open_site


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.of(request.param, tmp_path / "store")
    yield bench
    bench.store.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "home", "home") as site:
        yield site
