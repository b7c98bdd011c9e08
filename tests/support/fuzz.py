"""A peer that says anything: structure-aware fuzzing of a real node's links, before and after the hello, in both roles.

    python -m tests.support.fuzz --frames 5000000 --seed 7

Each *life* is one link of a real site, with the site's real handlers, over a wire in memory. Most
of what the peer sends is well-formed and means something here (real ids, open streams), or it
would never get past the first check; the rest is damaged at every layer. A life ends when the
node hangs up, which is its right; what must never happen is counted in `Report`.

Time is the CPU time of the thread, so a busy machine does not matter. What the garbage collector takes is told apart:
it may strike in any frame, and grows with what this program remembers. It has a bar of its own.
"""

import argparse
import dataclasses
import gc
import logging
import os
import random
import resource
import tempfile
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import structlog
import trio

from protocol.errors import ProtocolError
from protocol.ids import SiteId
from protocol.limits import BLOCK_BODY_MAX
from protocol.messages.registry import Message, Size, encode, registered
from protocol.messages.session import Hello
from protocol.messages.versions import CURRENT, OLDEST
from protocol.wire.envelope import seal
from protocol.wire.frames import END_STREAM, FRAME_HEADER_BYTES, FrameKind, Lane, pack_header
from protocol.wire.hashing import Kind
from replicator.core.memory import keep_freed_memory, settle_heap
from replicator.net.link import Link, Pace
from tests.support.bombs import BOMBS, REFUSED_WITHIN_S, cost_of_refusing
from tests.support.links import WireEnd, a_wire
from tests.support.nodes import Site, open_site, write_tree

PEER: Final = SiteId(b"\x07" * 32)
LIVES_AT_ONCE: Final = 32
_HURRY_S: Final = 5.0
_END_S: Final = 30
_TOLD_EVERY: Final = 250_000
_INTS: Final = (0, 1, 2, 3, 5, 7, 31, 32, 36, 56, 57, 255, 4096, 2**20, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(slots=True)
class Report:
    """What came of it. All but the first three have to stay nothing, or small."""

    frames: int = 0
    lives: int = 0
    ended_by_node: int = 0
    bugs: list[str] = field(default_factory=list)
    slowest_frame_s: float = 0.0
    slowest_frame: str = ""
    slowest_answer_s: float = 0.0
    """The longest stretch that a handler kept the event loop for."""
    slowest_answer: str = ""
    slowest_collection_s: float = 0.0
    rss_growth_bytes: int = 0
    state_changed: bool = False


class Words:
    """Makes messages and frames. `facts` are values that mean something to the node."""

    def __init__(self, rnd: random.Random, facts: dict[int, list[bytes]]) -> None:
        self.rnd = rnd
        self.facts = facts
        self.classes = list(registered().values())
        self.hints = {cls: typing.get_type_hints(cls, include_extras=True) for cls in self.classes}
        self.blocks = [seal(rnd.choice(list(Kind)), rnd.randbytes(rnd.randrange(300))) for _ in range(50)]
        self.blocks.append(seal(Kind.DATA, b"all work and no play " * 100))

    def message(self) -> Message:
        cls = self.rnd.choice(self.classes)
        names = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: self.value(self.hints[cls][name]) for name in names})

    def value(self, hint: Any) -> Any:
        rnd = self.rnd
        if typing.get_origin(hint) is typing.Annotated:
            base, *extras = typing.get_args(hint)
            sizes = [one for one in extras if isinstance(one, Size)]
            return self.sized(sizes[0]) if sizes else self.value(base)
        if typing.get_origin(hint) is tuple:
            return tuple(self.value(typing.get_args(hint)[0]) for _ in range(rnd.choice((0, 1, 2, 30))))
        plain = getattr(hint, "__supertype__", hint)
        if plain is int:
            return rnd.choice(_INTS) if rnd.random() < 0.7 else rnd.getrandbits(rnd.randrange(1, 64))
        if plain is bool:
            return rnd.random() < 0.5
        if plain is str:
            return rnd.choice(("", "home", "corrupt", "ü" * 50, "../../etc/passwd", "\x00", "%s" * 9))
        return rnd.randbytes(rnd.choice((0, 1, 9, 200)))

    def sized(self, size: Size) -> bytes:
        most = size.most if size.most is not None else 9000
        count = self.rnd.choice((0, 1, 2, 8, min(most, 300), most)) if size.multiple else 1
        count = min(count, most, 200_000 // size.count)
        known = self.facts.get(size.count)
        if known and self.rnd.random() < 0.7 and count < 500:
            return b"".join(self.rnd.choice(known) for _ in range(count))
        return self.rnd.randbytes(count * size.count)

    def body(self) -> bytes:
        """A message's bytes, or nearly."""
        try:
            packed = encode(self.message())
        except ProtocolError:
            packed = b"\x91\x30"
        return self.damaged(packed) if self.rnd.random() < 0.02 else packed

    def damaged(self, packed: bytes) -> bytes:
        rnd, raw = self.rnd, bytearray(packed)
        match rnd.randrange(6):
            case 0 if raw:
                for _ in range(rnd.randrange(1, 4)):
                    raw[rnd.randrange(len(raw))] ^= 1 << rnd.randrange(8)
            case 1:
                del raw[rnd.randrange(len(raw) + 1) :]
            case 2:
                raw += rnd.randbytes(rnd.randrange(1, 9))
            case 3 if raw:
                at = rnd.randrange(len(raw))
                raw[at : at + 1] = rnd.choice(
                    (b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xc7\xff\x01", b"\xcb")
                )
            case 4:
                return rnd.choice(_BOMBS)()
            case 5:
                return rnd.randbytes(rnd.randrange(400))
        return bytes(raw)

    def sealed(self) -> bytes:
        rnd = self.rnd
        run = b"".join(rnd.choice(self.blocks) for _ in range(rnd.randrange(4)))
        return self.damaged(run) if rnd.random() < 0.3 else run


def _nested() -> bytes:
    return b"\x91" * 200_000


def _dense() -> bytes:
    return b"\xdc\xff\xff" + b"\x90" * 65535


def _many() -> bytes:
    return bytes(msgpack.packb([0x27, [b""] * 16384, [b""] * 16384]))


def _lz4() -> bytes:
    return seal(Kind.DATA, bytes(BLOCK_BODY_MAX))


_BOMBS: Final[tuple[Callable[[], bytes], ...]] = (_nested, _dense, _many, _lz4)


_CLAIMS: Final = (b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xc7\xff\x01", b"\xcb")


class Peer:
    """One life of the hostile end."""

    def __init__(self, words: Words, *, is_dialer: bool) -> None:
        self.words, self.rnd = words, words.rnd
        self.next_stream = 1 if is_dialer else 2
        self.open: list[int] = []
        self.said: list[bytes] = []

    def hello(self) -> bytes:
        newest = self.rnd.choice((OLDEST, CURRENT - 1, CURRENT, CURRENT))
        item = Hello(version_min=OLDEST, version_max=newest, site_id=PEER, incarnation=bytes(16), name="peer")
        return self.frame(FrameKind.HELLO, 0, encode(item))

    def frame(self, kind: FrameKind, stream: int, body: bytes, *, flags: int = 0) -> bytes:
        body = body[: {FrameKind.HELLO: 4096, FrameKind.RESET: 8192, FrameKind.GOODBYE: 8192}.get(kind, 250_000)]
        lane = Lane.CONTROL if stream == 0 else self.rnd.choice(list(Lane))
        return pack_header(kind, stream, len(body), lane=lane, flags=flags) + body

    def next(self) -> bytes:
        raw = self._next()
        self.said.append(raw)
        if self.rnd.random() < 0.01:
            raw = self.rnd.choice(self.said[-20:])  # Again, or too late.
        if self.rnd.random() < 0.01:
            changed = bytearray(raw)
            changed[self.rnd.randrange(FRAME_HEADER_BYTES)] ^= 1 << self.rnd.randrange(8)
            raw = bytes(changed)
        return raw

    def _next(self) -> bytes:
        rnd, words = self.rnd, self.words
        flags = END_STREAM if rnd.random() < 0.5 else 0
        choice = rnd.random()
        if choice < 0.45 or not self.open:
            stream = self.next_stream
            self.next_stream += 2
            if not flags:
                self.open = [*self.open, stream][-40:]
            return self.frame(FrameKind.OPEN, stream, words.body(), flags=flags)
        stream = rnd.choice(self.open)
        flags = END_STREAM if rnd.random() < 0.15 else 0
        if choice < 0.85:
            if flags:
                self.open.remove(stream)
            if choice < 0.7:
                return self.frame(FrameKind.MESSAGE, stream, words.body(), flags=flags)
            return self.frame(FrameKind.BLOCKS, stream, words.sealed(), flags=flags)
        match rnd.randrange(6):
            case 0:
                self.open.remove(stream)
                return self.frame(FrameKind.RESET, stream, encode(Refusals(rnd)))
            case 1:
                return self.frame(FrameKind.CREDIT, stream, rnd.choice((bytes(4), b"\xff" * 4, b"\0\1\0\0")))
            case 2 | 3:
                return self.frame(FrameKind.PING, 0, rnd.randbytes(8))
            case 4:
                return self.frame(FrameKind.PONG, 0, rnd.randbytes(8))
            case _:
                return self.frame(
                    FrameKind.MESSAGE, stream, rnd.choice(_BOMBS)() if rnd.random() < 0.1 else words.body()
                )


def Refusals(rnd: random.Random) -> Message:
    cls = next(one for one in registered().values() if one.__name__ == "Refusal")
    return cls(error=rnd.choice((0, 8, 16, 999)), reason="because")  # type: ignore[call-arg]


class Meter(trio.abc.Instrument):
    """CPU time of this thread without that of the collector, and the longest stretch of any handler."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._collected_s = self._collection_began = 0.0
        self._step_began = 0.0

    def __enter__(self) -> "Meter":
        gc.callbacks.append(self._collect)
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)
        gc.callbacks.remove(self._collect)

    def now(self) -> float:
        return time.thread_time() - self._collected_s

    def _collect(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
            return
        took = time.thread_time() - self._collection_began
        self._collected_s += took
        self._report.slowest_collection_s = max(self._report.slowest_collection_s, took)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._step_began = self.now()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = self.now() - self._step_began
        if took > self._report.slowest_answer_s and task.name.endswith("Link._handle"):
            self._report.slowest_answer_s = took
            self._report.slowest_answer = str(task.coro.cr_frame and task.coro.cr_frame.f_locals.get("request"))[:80]


class TimedEnd:
    """The node's end of the wire: gives it one frame at a time and measures what it does with each."""

    def __init__(self, end: WireEnd, report: Report, meter: Meter) -> None:
        self._end, self._report, self._meter = end, report, meter
        self._began: float | None = None
        self._last = b""

    async def receive(self) -> bytes:
        if self._began is not None:
            took = self._meter.now() - self._began
            if took > self._report.slowest_frame_s:
                self._report.slowest_frame_s = took
                self._report.slowest_frame = f"{len(self._last)} bytes: {self._last[:40].hex()}"
        self._began = None
        data = await self._end.receive()
        self._last, self._began = data, self._meter.now()
        return data

    async def send(self, parts: Any) -> None:
        await self._end.send(parts)

    async def close(self) -> None:
        self._began = None
        await self._end.close()


async def live(site: Site, words: Words, report: Report, meter: Meter, *, most: int) -> None:
    """One link, from its first byte to its end."""
    rnd = words.rnd
    is_dialer = rnd.random() < 0.5
    near, far = a_wire()
    mine = Hello(
        version_min=OLDEST, version_max=CURRENT, site_id=site.parts.site_id, incarnation=bytes(16), name=site.name
    )
    link = Link(
        TimedEnd(near, report, meter), peer=PEER, name="peer", is_dialer=not is_dialer, hello=mine,
        handlers=site.mesh.handlers, pace=Pace(), address="fuzz", entropy=site.parts.entropy,
    )  # fmt: skip
    peer = Peer(words, is_dialer=is_dialer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        nursery.start_soon(_drain, far)
        try:
            if rnd.random() < 0.9:
                await far.send([peer.hello()])
            for _ in range(rnd.randrange(1, most)):
                if link.closed.is_set():
                    break
                with trio.move_on_after(_HURRY_S):
                    await far.send([peer.next()])
                report.frames += 1
        except Exception as error:  # The wire is cut: the node has hung up.
            if type(error).__name__ != "Unreachable":
                raise
        report.ended_by_node += link.closed.is_set()
        await far.close()
        for _ in range(_END_S):  # Second by second: a process that was stopped meanwhile has not waited.
            with trio.move_on_after(1.0):
                await link.closed.wait()
                break
        if link.why_closed == "an internal error" or not link.closed.is_set():
            report.bugs.append(link.why_closed or "a link that does not end")
        nursery.cancel_scope.cancel()
    report.lives += 1


async def _drain(end: WireEnd) -> None:
    while await end.receive():
        pass


def _state(site: Site) -> tuple[Any, ...]:
    snapshots = [one.snapshot_id for one in site.catalog.snapshots()]
    return snapshots, [one.site_id for one in site.catalog.peers.all()], site.store.statistics().blocks


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def fuzz(
    folder: Path, *, frames: int, seed: int, most: int = 120, tell: Callable[[Report], None] | None = None
) -> Report:
    """Let a hostile peer say about so many frames to a real site. Everything follows from the seed but the timing.

    `tell` hears of the figures so far at every `_TOLD_EVERY` frames: a night that is cut short has said something too.
    """
    report, told = Report(), 0
    with open_site(folder / "home", "home") as site:
        data = write_tree(folder / "data", files=20, size=3000)
        snapshot = await site.take(site.protect(data))
        site.catalog.peers.add(PEER, name="peer", addresses=[])
        record = snapshot.record
        facts = {
            16: [record.snapshot_id, record.volume_id, bytes(16)],
            32: [record.root, bytes(32), *sorted(site.block_ids())[:10], PEER, site.parts.site_id],
        }
        rnd = random.Random(seed)
        words = Words(rnd, facts)
        before, rss = _state(site), 0

        async def worker() -> None:
            nonlocal rss, told
            while report.frames < frames:
                await live(site, words, report, meter, most=most)
                if not rss and report.frames > min(frames // 5, 20_000):
                    rss = _rss()
                if tell is not None and report.frames - told >= _TOLD_EVERY:
                    told = report.frames
                    report.rss_growth_bytes = _rss() - rss
                    tell(report)

        meter = Meter(report)
        async with trio.open_nursery() as nursery:
            await nursery.start(_run_jobs, site)
            settle_heap()  # As a node does once it is up.
            with meter:
                async with trio.open_nursery() as workers:
                    for _ in range(LIVES_AT_ONCE):
                        workers.start_soon(worker)
            nursery.cancel_scope.cancel()
        report.rss_growth_bytes = _rss() - rss
        report.state_changed = _state(site) != before
    return report


async def _run_jobs(site: Site, task_status: trio.TaskStatus[None]) -> None:
    started = trio.Event()
    task_status.started()
    await site.living.jobs.run(started=started)


def quiet() -> None:
    """What is refused is logged a thousand times a second."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def figures(report: Report) -> str:
    """One line of them."""
    return (
        f"{report.frames:,} frames in {report.lives:,} lives, {report.ended_by_node:,} ended by the node; "
        f"slowest frame {report.slowest_frame_s * 1e3:.1f} ms, answer {report.slowest_answer_s * 1e3:.1f} ms, "
        f"collection {report.slowest_collection_s * 1e3:.1f} ms of CPU; "
        f"memory grew by {report.rss_growth_bytes / 2**20:.1f} MiB"
    )


def _tell(report: Report) -> None:
    print(f"so far: {figures(report)}; {time.process_time():.0f} s of CPU, {len(report.bugs)} mistakes", flush=True)


_FRAME_S: Final = 0.05
_RSS_BYTES: Final = 64 * 1024 * 1024


def failings(report: Report) -> list[str]:
    """Which of the bars are missed, in words."""
    said = {
        "the node made a mistake: " + "; ".join(report.bugs[:3]): bool(report.bugs),
        "what the node holds has changed": report.state_changed,
        f"a frame took {report.slowest_frame_s * 1e3:.0f} ms ({report.slowest_frame})": report.slowest_frame_s
        > _FRAME_S,
        f"an answer took {report.slowest_answer_s * 1e3:.0f} ms ({report.slowest_answer})": (
            report.slowest_answer_s > _FRAME_S
        ),
        f"a garbage collection took {report.slowest_collection_s * 1e3:.0f} ms": report.slowest_collection_s > _FRAME_S,
        f"memory grew by {report.rss_growth_bytes >> 20} MiB": report.rss_growth_bytes > _RSS_BYTES,
    }
    return [why for why, is_missed in said.items() if is_missed]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the links of a real node.")
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    quiet()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = trio.run(lambda: fuzz(Path(folder), frames=chosen.frames, seed=chosen.seed, tell=_tell))
    print(figures(report))
    missed = failings(report)
    for name, bomb in BOMBS.items():
        cost_s = cost_of_refusing(bomb)
        if cost_s > REFUSED_WITHIN_S:
            missed.append(f"{name}: refused after {cost_s * 1e3:.1f} ms")
    for why in missed:
        print(f"MISSED: {why}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
