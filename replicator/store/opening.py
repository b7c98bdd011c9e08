"""Opening a store: the ledger is made to tell the truth about the segments, or is made anew from them.

Segments are the truth (`replay`). A ledger may be lost, damaged, or an older copy that somebody has put
back, as a whole or a part of it; nobody has to be told which. The same is done while the store is
in use, when a scrub finds a row that is not as it was written (`rebuilt_ledger`).
"""

import shutil
import sqlite3
from pathlib import Path
from typing import Final

from replicator.core.errors import DatabaseDamaged, StoreError
from replicator.core.files import sync_directory
from replicator.core.logging import get_logger
from replicator.store.config import StoreConfig
from replicator.store.layout import StoreLayout
from replicator.store.ledger import Ledger, LedgerDamaged
from replicator.store.ports import Fault
from replicator.store.replay import Replayed, replay
from replicator.store.segments import SegmentFiles

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def open_ledger(layout: StoreLayout, config: StoreConfig) -> Ledger:
    """The ledger, or, if one of its files is damaged, a new one that the replay will fill.

    A full or failing disk is not a damaged ledger, and says nothing against it.
    """
    try:
        ledger = Ledger(layout.ledger, config)
        wrong = ledger.check()
        if not wrong:
            return ledger
        ledger.close()
    except (LedgerDamaged, DatabaseDamaged) as error:
        wrong = error.message
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in _DAMAGED:
            raise _not_opened(layout, error) from error
        wrong = str(error)
    get_logger().warning("ledger.damaged", path=str(layout.ledger), found=wrong, then="rebuilding it from the segments")
    _put_aside(layout.ledger)
    return _new(layout, config)


def _new(layout: StoreLayout, config: StoreConfig) -> Ledger:
    try:
        return Ledger(layout.ledger, config)
    except sqlite3.DatabaseError as error:
        raise _not_opened(layout, error) from error


def _not_opened(layout: StoreLayout, error: sqlite3.DatabaseError) -> StoreError:
    return StoreError(f"{layout.ledger} cannot be opened: {error}.", hint="Check the disk.")


def _put_aside(folder: Path) -> None:
    """Keep what is damaged for whoever wants to know why, but only the last of it."""
    beside = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(beside, ignore_errors=True)
    folder.rename(beside)
    sync_directory(folder.parent)


def recover(layout: StoreLayout, files: SegmentFiles, ledger: Ledger, *, now_ns: int) -> Replayed:
    """Make the ledger tell the truth about the segments, and mark it as the newest there is.

    A ledger from a copy has accounted for bytes, but not for what happened to their blocks since:
    it is cross-checked with every segment. (The ledger is marked before the file is, so that
    a crash between the two leaves a ledger that is too new, which is none from a copy. Without the file, or with
    one that makes no sense, nobody knows, and it is cross-checked too.)
    """
    generation, last = ledger.fact("generation"), layout.read_generation()
    _disown_lost(files, ledger, now_ns=now_ns)
    if generation < last or (generation and not last):
        ledger.distrust_segments()
    replayed = replay(files, ledger)
    ledger.set_fact("generation", max(generation, last) + 1)
    layout.write_generation(max(generation, last) + 1)
    return replayed


def _disown_lost(files: SegmentFiles, ledger: Ledger, *, now_ns: int) -> None:
    """Call nothing present whose bytes are not there: a segment was lost, or the ledger is older than the segments.

    What lies elsewhere all the same is found by the replay that follows; the rest waits for repair.
    """
    known = ledger.known_segments()
    files.number_taken = max(known, default=0)
    lost: list[Fault] = []
    for number, end in known.items():
        size = files.size(number)
        if size < end:
            lost += ledger.beyond(number, end=size)
    if lost:
        ledger.quarantine(lost, now_ns=now_ns)
        get_logger().error("store.segments_lost", blocks=len(lost))


def rebuilt_ledger(layout: StoreLayout, config: StoreConfig, files: SegmentFiles, old: Ledger, *, why: str) -> Ledger:
    """A new ledger from the segments, with what the old one alone knew. Nothing may be committed or removed meanwhile.

    The old one stays readable. Killed in the middle, the next opening finds a
    ledger that accounts for less than there is, and carries on.
    """
    get_logger().error("ledger.damaged", path=str(layout.ledger), found=why, then="rebuilding it from the segments")
    generation, epoch = old.fact("generation"), old.fact("epoch")
    broken, sentences = old.broken(), old.sentences()
    old.stop_merging()
    _put_aside(layout.ledger)
    new = _new(layout, config)
    new.set_fact("epoch", epoch)
    replay(files, new)
    here = new.present([fault.block_id for fault in broken])
    new.keep_broken([fault for fault in broken if fault.block_id not in here])
    for block, sentenced, at_ns in sentences:
        new.condemn([block], epoch=sentenced, now_ns=at_ns)
    new.set_fact("generation", generation)
    return new
