"""A bit that turned in one of the node's own tables: named where it is met, and no error of the reader's."""

import json
from functools import partial
from pathlib import Path

import pytest

from replicator.catalog.catalog import Catalog
from replicator.core.errors import CatalogError, DatabaseDamaged
from replicator.testing.databases import MemoryDatabase
from replicator.testing.power import Power
from tests.support.cells import _Clock, _scrubber, _Tables

SPOILED = [
    "UPDATE syncs SET terms = '{\"cron'",
    "UPDATE syncs SET terms = 7",
    "UPDATE peers SET rights = '{\"may\": 5}'",
    "UPDATE successions SET told = '[\"no hex\"]'",
    "UPDATE volumes SET exclude = 'x'",
    "INSERT INTO facts VALUES ('catalogue.unread', '[1]')",
]


@pytest.mark.parametrize("sql", SPOILED)
def test_a_catalogue_with_a_spoiled_cell_is_refused_at_the_start_and_says_what_to_do(sql: str) -> None:
    tables = _Tables()
    with tables.catalog.db.write() as connection:
        connection.execute(sql)
    with pytest.raises(CatalogError, match="damaged") as refused:
        Catalog(
            Path("catalog"),
            clock=_Clock(),
            open_database=partial(MemoryDatabase, kept=tables.kept, power=Power()),
        )
    assert "copy" in refused.value.hint


def test_a_cell_that_is_spoiled_in_mid_life_is_named_to_whoever_asks() -> None:
    tables = _Tables()
    assert len(tables.catalog.syncs()) == 1
    with tables.catalog.db.write() as connection:
        connection.execute("UPDATE syncs SET terms = '[]'")
    with pytest.raises(DatabaseDamaged, match="syncs is damaged"):
        tables.catalog.syncs()


@pytest.mark.parametrize("text", ["[", "{}", "[{}]", '[{"what": []}]', "[" * 100_000])
def test_a_scrub_begins_anew_if_what_it_had_kept_makes_no_sense(text: str) -> None:
    catalog = _Tables().catalog
    catalog.set_fact("scrub.findings", text)
    catalog.set_fact("scrub.pass", text)
    scrubber = _scrubber(catalog)
    assert scrubber.findings == [] and scrubber.pass_now.started_ns == 0


def test_what_a_scrub_has_kept_is_there_after_a_restart() -> None:
    catalog = _Tables().catalog
    found = {"what": "block", "subject": "ab", "cause": "corrupt", "place": "x", "done": "y", "is_mended": False}
    catalog.set_fact("scrub.findings", json.dumps([found]))
    catalog.set_fact("scrub.pass", json.dumps({"started_ns": 5, "stage": "blocks"}))
    scrubber = _scrubber(catalog)
    assert scrubber.findings[0]["subject"] == "ab" and scrubber.pass_now.started_ns == 5


def test_a_job_whose_row_is_spoiled_is_damaged_and_its_table_begun_anew() -> None:
    history = _Tables().history
    for text in ("[]", "{", "5"):
        with history._db.write() as connection:
            connection.execute("UPDATE jobs SET result = ?", (text,))
        with pytest.raises(DatabaseDamaged, match="a job is damaged"):
            history.get("j")
