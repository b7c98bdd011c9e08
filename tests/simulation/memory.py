"""What a node keeps in memory, seen from outside: every container that hangs on it, by the class and name it has there.

Nobody has to be asked, so nothing can be forgotten: whoever gives a part of a node a new dictionary has it
looked at here. A leak is small in a world of minutes, so what is allowed at rest is small as well: a few entries
for each thing that the catalogue knows of, or a bound that is named.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Sized
from typing import Any, Final

from protocol.limits import MIB, STREAM_CREDIT
from replicator.net.link import Link
from replicator.sync.audit import VIEWS_MAX
from replicator.testing.site import MemorySite
from tests.simulation.model import Violation

_OURS: Final = ("replicator.", "protocol.")
_NOT_OURS: Final = ("replicator.testing.", "replicator.store.memory")
"""The machine below: its disks are what is measured in bytes elsewhere."""
_ANY_MAX: Final = 48
_FOR_EACH: Final = 3
"""Entries that any container may have at rest: so many, and for each thing in the catalogue so many more."""
_BOUNDS: Final[dict[str, int]] = {
    "Auditor._views": VIEWS_MAX,
    "Auditor._nonces": VIEWS_MAX,
    "Scrubber.findings": 1000,
    "WorkerRunner.states": 64,
}
_EMPTY: Final = ("Receiver._locks", "Link.offered", "Connection._leaving")
"""What has to be empty when nobody works."""
_QUEUED_MAX: Final = 6 * MIB
"""Of a stream: a link's own bound, and the frames that are being made."""
_PENDING_MAX: Final = 64 * MIB
_AT_REST_MAX: Final = 64 * 1024
"""Bytes that may wait on a link when nobody works: some messages about how sites are."""


def containers(root: object) -> Iterator[tuple[str, Sized]]:
    """Every container that hangs on an object of ours below `root`, with the name it has there."""
    seen: set[int] = set()
    todo: deque[tuple[str, Any]] = deque([("", root)])
    while todo:
        name, one = todo.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict | list | set | frozenset | deque | tuple):
            if name and not isinstance(one, tuple | frozenset):
                yield name, one
            # What lies in it is looked at too, unless it is many: then it is things, and not parts of the node.
            if len(one) <= _ANY_MAX:
                todo.extend((name, item) for item in (one.values() if isinstance(one, dict) else one))
        elif isinstance(one, types.MethodType):
            todo.append(("", one.__self__))
        elif isinstance(one, types.FunctionType):
            todo.extend(("", cell.cell_contents) for cell in one.__closure__ or () if _is_filled(cell))
        elif isinstance(one, functools.partial):
            todo.extend([("", one.func), *(("", item) for item in one.args)])
        else:
            todo.extend(_attributes(one))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _attributes(one: object) -> Iterator[tuple[str, object]]:
    kind = type(one)
    if not kind.__module__.startswith(_OURS) or kind.__module__.startswith(_NOT_OURS):
        return
    names = dict.fromkeys(getattr(one, "__dict__", ()))
    for base in kind.__mro__:
        names.update(dict.fromkeys(getattr(base, "__slots__", ())))
    for name in names:
        value = getattr(one, name, None)
        if value is not None and not isinstance(value, int | str | bytes | float):
            yield f"{kind.__name__}.{name}", value


def check_at_rest(site: MemorySite) -> None:
    """Raises `Violation` if a node keeps more than what it knows of can explain."""
    catalog = site.catalog
    things = (
        len(catalog.snapshots()) + len(catalog.volumes()) + len(catalog.peers.all()) + len(catalog.syncs())
        + len(catalog.successions())
    )  # fmt: skip
    for name, one in containers(site.node):
        most = _BOUNDS.get(name, _ANY_MAX + _FOR_EACH * things)
        if name in _EMPTY:
            most = 0
        if len(one) > most:
            raise Violation(f"{site.name} keeps {len(one)} entries in {name} when nobody works; {most} would do")
    for link in site.node.mesh.connected():
        if (waiting := link.connection.statistics().queued_bytes) > _AT_REST_MAX:
            raise Violation(f"{site.name} has {waiting} bytes waiting for {link.name} when nobody works")


def check_queues(site: MemorySite) -> None:
    """At any moment: what waits to be written, to be read, and to be committed stays inside its bounds."""
    for link in site.node.mesh.connected():
        for stream in link._streams.values():
            _check_stream(site, link, stream.number, sum(size for _, size in stream._items))
    store = site.machine.store
    assert store is not None
    if store.pending_bytes() > _PENDING_MAX:
        raise Violation(f"{site.name} has {store.pending_bytes()} bytes that were never committed")


def _check_stream(site: MemorySite, link: Link, number: int, unread: int) -> None:
    queued = link.connection.queued_bytes(number) if link.connection.is_open(number) else 0
    if queued > _QUEUED_MAX:
        raise Violation(f"{site.name} has {queued} bytes queued on one stream to {link.name}")
    if unread > STREAM_CREDIT:
        raise Violation(f"{site.name} has {unread} bytes from {link.name} that nobody has taken from their stream")
