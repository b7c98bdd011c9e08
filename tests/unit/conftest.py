"""What unit tests of taking and restoring begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.alone import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    yield site
    site.store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder
