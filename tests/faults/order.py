"""The order of commits, read from a trace of system calls: the poor man's ALICE.

For each acknowledgement of a thread, in the order that the kernel saw:

    its bytes are written  <  their segment is flushed  <  an index file is written  <  it is flushed  <  the word

and a file that was created must have its name flushed (fsync of the folder) before anything in it is acknowledged, a
file that is renamed must be flushed before, and its folder after. A call counts from when it began to when it
returned: a flush that began before the write ended proves nothing. Nothing here knows which engine the index is: any
file of the store that is no segment counts as index.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.stage import Stage
from tests.faults.tracer import Tracer

CALLS = (
    "openat", "pwritev", "pwritev2", "pwrite64", "write", "writev", "fsync", "fdatasync", "rename", "renameat",
    "renameat2", "unlink",
)  # fmt: skip
MORE = ("-y", "-s", "24")
_CALL = re.compile(r"^(\d+)\s+(\w+)\((.*?)(?: <unfinished \.\.\.>|\)\s+= (-?\d+).*)$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>.*?\)?\s+= (-?\d+).*$")
_HANDLE = re.compile(r"^\d+<([^>]*)>")
_NAMES = re.compile(r'"([^"]*)"')
_ACK = re.compile(r'iov_base="ack (\d+) (\d+)')
_IGNORED = ("-shm", "/lock")


@dataclass(slots=True)
class Call:
    """One system call of one thread; `began` and `ended` number the lines of the trace."""

    thread: str
    name: str
    rest: str
    began: int
    ended: int = 0
    result: int = 0

    @property
    def path(self) -> str:
        found = _HANDLE.match(self.rest)
        return found[1] if found else ""


def read_calls(lines: Iterable[str]) -> Iterator[Call]:
    """Calls in the order in which they returned."""
    open_calls: dict[tuple[str, str], Call] = {}
    for number, line in enumerate(lines):
        if found := _CALL.match(line):
            call = Call(found[1], found[2], found[3], number)
            if found[4] is None:
                open_calls[call.thread, call.name] = call
                continue
        elif (found := _RESUMED.match(line)) and (found[1], found[2]) in open_calls:
            call = open_calls.pop((found[1], found[2]))
            call.result = int(found[3])
            call.ended = number
            yield call
            continue
        else:
            continue
        call.ended, call.result = number, int(found[4])
        yield call


@dataclass(slots=True)
class Verdict:
    """What a trace shows."""

    acks: int = 0
    violations: list[str] = field(default_factory=list)
    data_flushes: int = 0
    index_flushes: int = 0


class Order:
    """Follows one store through a trace."""

    def __init__(self, store: Path) -> None:
        self._store = str(store)
        self.verdict = Verdict()
        self._mine: dict[str, list[Call]] = defaultdict(list)
        """What each thread has written to segments since its last word."""
        self._flushes: dict[str, list[Call]] = defaultdict(list)
        self._index_writes: list[Call] = []
        self._last_write: dict[str, int] = {}
        self._unnamed: dict[str, int] = {}
        """Files whose names are not known to be durable, and since when."""
        self._failed = ""

    def see(self, call: Call) -> None:
        match call.name:
            case "openat" if "O_CREAT" in call.rest and call.result >= 0:
                self._created(call)
            case "pwritev" | "pwritev2" | "pwrite64" | "write":
                self._wrote(call)
            case "writev" if found := _ACK.search(call.rest):
                self._acked(call, found[0])
            case "fsync" | "fdatasync":
                self._flushed(call)
            case "rename" | "renameat" | "renameat2" if call.result == 0:
                self._renamed(call)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._store + "/") and not path.endswith(_IGNORED)

    def _created(self, call: Call) -> None:
        path = _NAMES.findall(call.rest)[-1]
        if self._is_ours(path) and path not in self._last_write:
            self._unnamed[path] = call.ended
            self._last_write[path] = call.ended

    def _wrote(self, call: Call) -> None:
        if not self._is_ours(call.path) or call.result <= 0:
            return
        self._last_write[call.path] = call.ended
        if call.path.endswith(".seg"):
            if call.name.startswith("pwritev"):
                self._mine[call.thread].append(call)
        else:
            self._index_writes.append(call)

    def _flushed(self, call: Call) -> None:
        path = call.path
        if not (path == self._store or path.startswith(self._store + "/")):
            return
        if call.result < 0:
            self._failed = f"{call.name} of {path}"
            return
        self._flushes[path].append(call)
        if path.endswith(".seg"):
            self.verdict.data_flushes += 1
        elif path in self._last_write:
            self.verdict.index_flushes += 1
        for name, since in list(self._unnamed.items()):
            if str(Path(name).parent) == path and call.began > since:
                del self._unnamed[name]

    def _renamed(self, call: Call) -> None:
        source, target = _NAMES.findall(call.rest)[-2:]
        if not self._is_ours(target):
            return
        if not self._covered(source, self._last_write.get(source, 0), before=call.began):
            self._wrong(f"{source} was renamed before it was flushed")
        self._unnamed.pop(source, None)
        self._unnamed[target] = call.ended
        self._last_write[target] = self._last_write.pop(source, 0)
        self._flushes[target] += self._flushes.pop(source, [])

    def _covered(self, path: str, since: int, *, before: int) -> Call | None:
        """The first flush of a file that began after `since` and returned before `before`."""
        for flush in self._flushes[path]:
            if flush.began > since and flush.ended < before:
                return flush
        return None

    def _acked(self, call: Call, what: str) -> None:
        self.verdict.acks += 1
        if self._failed:
            self._wrong(f"{what}: after a failed {self._failed}")
        writes, self._mine[call.thread] = self._mine[call.thread], []
        if not writes:
            self._wrong(f"{what}: nothing was written")
        for write in writes:
            self._check(what, write, call)
        self._forget(call.began)

    def _check(self, what: str, write: Call, ack: Call) -> None:
        flush = self._covered(write.path, write.ended, before=ack.began)
        if flush is None:
            self._wrong(f"{what}: {write.path} was not flushed")
            return
        if write.path in self._unnamed:
            self._wrong(f"{what}: the name of {write.path} was not flushed")
        told = [one for one in self._index_writes if one.began > flush.ended and one.ended < ack.began]
        if not any(self._covered(one.path, one.ended, before=ack.began) for one in told):
            self._wrong(f"{what}: no index was written and flushed after the data")
        elif all(one.path in self._unnamed for one in told):
            self._wrong(f"{what}: the name of the index was not flushed")

    def _forget(self, until: int) -> None:
        """What no later word can rest on: several thousand lines back."""
        horizon = until - 20_000
        if self._index_writes and self._index_writes[0].ended < horizon - 20_000:
            self._index_writes = [one for one in self._index_writes if one.ended > horizon]
            for path, flushes in self._flushes.items():
                self._flushes[path] = [one for one in flushes if one.ended > horizon]

    def _wrong(self, text: str) -> None:
        self.verdict.violations.append(text)


class NothingAhead:
    """For a store with one writer: no index may name bytes that are not flushed yet."""

    def __init__(self, store: Path) -> None:
        self._store = str(store)
        self._dirty: set[str] = set()
        self.violations: list[str] = []

    def see(self, call: Call) -> None:
        path = call.path
        if not path.startswith(self._store + "/") or path.endswith(_IGNORED):
            return
        if call.name in ("fsync", "fdatasync"):
            self._dirty.discard(path)
        elif path.endswith(".seg"):
            if call.name.startswith("pwritev"):
                self._dirty.add(path)
        elif call.name.startswith("pwrite") and self._dirty:
            self.violations.append(f"{path} was written while {self._dirty} were not flushed")


def judge_trace(trace: Path, store: Path, *, one_writer: bool) -> Verdict:
    order, ahead = Order(store), NothingAhead(store)
    with trace.open(errors="replace") as lines:
        for call in read_calls(lines):
            order.see(call)
            if one_writer:
                ahead.see(call)
    order.verdict.violations += ahead.violations
    return order.verdict


def run_and_judge(
    stage: Stage, folder: Path, *, writers: int, count: int, seed: int, segment: int = 65536, flush_us: int = 0
) -> Verdict:
    """Let writers commit `count` blocks each, and read the trace. Each flush may be made to take `flush_us` longer."""
    args = {"folder": str(folder / "s"), "seed": seed, "writers": writers, "count": count, "segment": segment}
    actor = stage.work("acks", args, said=folder / "said")
    stage.wait_stopped(actor)
    slow = [f"{call}:delay_exit={flush_us}" for call in ("fsync", "fdatasync") if flush_us]
    tracer = Tracer(actor.pid, folder / "trace", calls=CALLS, more=MORE, inject=slow)
    actor.go_on()
    code = stage.wait_ended(actor, seconds=600)
    tracer.wait(seconds=60)
    assert code == 0, actor.errors()
    return judge_trace(folder / "trace", folder / "s", one_writer=writers == 1)
