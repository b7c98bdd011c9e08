"""The least that the work can cost on this machine: straight scripts without a product around them.

Each does only what the result needs, with the same libraries, batch by batch, and overlaps
what can overlap with one thread. They run in processes of their own, `measure_floor` starts them.

    python -m bench.floors sync SEGMENTS OUT      and so on; prints one JSON object
"""

import json
import os
import queue
import resource
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import lz4.block
from blake3 import blake3

from bench.image import BLOCK
from protocol.wire.envelope import HEADER_BYTES, parse_header, unseal, walk
from replicator.core.memory import keep_freed_memory
from replicator.net.identity import Identity
from replicator.net.tls import make_context
from replicator.store.segments import SEGMENT_HEADER_BYTES

_BATCH: Final = 1024 * 1024
_QUEUED: Final = 8
_PIECE: Final = 256 * 1024
"""About what a large file is cut into."""
_FLUSH: Final = 256 * 1024 * 1024


def measure_floor(name: str, *paths: Path) -> dict[str, Any]:
    """Run one floor in a fresh process. Its wall and processor seconds."""
    command = [sys.executable, "-m", "bench.floors", name, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def runs(segments: Path) -> Iterator[bytes]:
    """All sealed blocks of a store, in runs of whole ones of about a mebibyte, as they lie."""
    for path in sorted(segments.iterdir()):
        with path.open("rb", buffering=0) as file:
            file.seek(SEGMENT_HEADER_BYTES)
            rest = b""
            while piece := file.read(_BATCH):
                data = rest + piece if rest else piece
                end = _whole(data)
                if end:
                    yield data if end == len(data) else data[:end]
                rest = data[end:]


def _whole(data: bytes) -> int:
    at = 0
    while len(data) - at >= HEADER_BYTES:
        size = parse_header(data, at).sealed_bytes
        if at + size > len(data):
            break
        at += size
    return at


def prove(run: bytes) -> bytes:
    at = 0
    while at < len(run):
        header, _ = unseal(run, at)
        at += header.sealed_bytes
    return run


# -- sync: read, prove, TLS, prove, append, flush -------------------------------------------


def sync(segments: Path, out: Path) -> dict[str, float]:
    return _over_the_wire(segments, lambda link: _receive(link, out, prove))


def restore_from_peer(segments: Path, image: Path, out: Path) -> dict[str, float]:
    """The same, and what has come is also written where it belongs in an image. Where that is is known beforehand."""
    where = _places_in(image)
    kept = out.with_name(out.name + ".kept")
    handle = os.open(out, os.O_WRONLY | os.O_CREAT, 0o600)

    def prove_and_put(run: bytes) -> bytes:
        at = 0
        while at < len(run):
            header, body = unseal(run, at)
            for offset in where.get(header.block_id, ()):
                os.pwrite(handle, body, offset)
            at += header.sealed_bytes
        return run

    def receive(link: ssl.SSLSocket) -> None:
        _receive(link, kept, prove_and_put, finish=finish)

    def finish() -> None:
        os.ftruncate(handle, image.stat().st_size)
        os.fsync(handle)

    try:
        return _over_the_wire(segments, receive)
    finally:
        os.close(handle)
        kept.unlink(missing_ok=True)


def _places_in(image: Path) -> dict[bytes, list[int]]:
    where: dict[bytes, list[int]] = {}
    with image.open("rb", buffering=0) as source:
        at = 0
        while data := source.read(BLOCK):
            where.setdefault(blake3(data).digest(), []).append(at)
            at += len(data)
    return where


def _over_the_wire(segments: Path, receive: Callable[[ssl.SSLSocket], None]) -> dict[str, float]:
    one, other = Identity.generate(), Identity.generate()
    server, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    child = os.fork()
    if child == 0:
        client.close()
        context = make_context(other, [one.site_id], is_server=True)
        receive(context.wrap_socket(accepted, server_side=True))
        os._exit(0)
    accepted.close()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    link = make_context(one, [other.site_id], is_server=False).wrap_socket(client)
    with ThreadPoolExecutor(1) as threads:
        for run in _ahead(runs(segments), prove, threads):
            link.sendall(len(run).to_bytes(4, "big"))
            link.sendall(run)
    link.sendall(bytes(4))
    assert link.recv(1) == b"!", "the receiver has flushed everything"
    wall = time.perf_counter() - began
    _, _, used = os.wait4(child, 0)
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": wall,
        "sender_cpu_s": mine.ru_utime + mine.ru_stime - before.ru_utime - before.ru_stime,
        "receiver_cpu_s": used.ru_utime + used.ru_stime,
        "cpu_s": mine.ru_utime + mine.ru_stime - before.ru_utime - before.ru_stime + used.ru_utime + used.ru_stime,
    }


def _ahead(items: Iterator[bytes], work: Callable[[bytes], bytes], threads: ThreadPoolExecutor) -> Iterator[bytes]:
    """Work on a few items ahead of the one who takes the results, in order."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    under_way = 0
    for item in items:
        waiting.put(threads.submit(work, item))
        under_way += 1
        if under_way == _QUEUED:
            yield waiting.get().result()
            under_way -= 1
    for _ in range(under_way):
        yield waiting.get().result()


def _receive(
    link: ssl.SSLSocket, out: Path, work: Callable[[bytes], bytes], *, finish: Callable[[], None] = lambda: None
) -> None:
    arrived: queue.Queue[memoryview] = queue.Queue(_QUEUED)
    keeper = threading.Thread(target=_keep, args=(arrived, out, work))
    keeper.start()
    while True:
        size = int.from_bytes(_exactly(link, 4), "big")
        if not size:
            break
        arrived.put(_exactly(link, size))
    arrived.put(memoryview(b""))
    keeper.join()
    finish()
    link.sendall(b"!")


def _exactly(link: ssl.SSLSocket, size: int) -> memoryview:
    view = memoryview(bytearray(size))
    at = 0
    while at < size:
        at += link.recv_into(view[at:])
    return view


def _keep(arrived: "queue.Queue[memoryview]", out: Path, work: Callable[[bytes], bytes]) -> None:
    unflushed = 0
    with out.open("wb", buffering=0) as file:
        while run := arrived.get():
            work(run)  # type: ignore[arg-type]
            file.write(run)
            unflushed += len(run)
            if unflushed > _FLUSH:
                os.fdatasync(file.fileno())
                unflushed = 0
        os.fdatasync(file.fileno())


# -- one process: snapshot, scrub, restore --------------------------------------------------


def ingest(image: Path, out: Path) -> dict[str, float]:
    """Read, leave out zeros and what was seen, hash, LZ4, write, flush."""
    seen: set[bytes] = set()
    zeros = bytes(BLOCK)

    def pack(data: bytes) -> bytes:
        parts: list[bytes] = []
        view = memoryview(data)
        for at in range(0, len(data), BLOCK):
            body = view[at : at + BLOCK]
            if data.startswith(zeros, at):
                continue
            name = blake3(body).digest()
            if name not in seen:
                seen.add(name)
                packed: bytes = lz4.block.compress(body, store_size=False)
                parts.append(packed if len(packed) < len(body) else bytes(body))
        return b"".join(parts)

    def work() -> None:
        with image.open("rb", buffering=0) as source, out.open("wb", buffering=0) as file, ThreadPoolExecutor(2) as two:
            for packed in _ahead(iter(lambda: source.read(_BATCH), b""), pack, two):
                file.write(packed)
            os.fdatasync(file.fileno())

    return _alone(work)


def ingest_tree(tree: Path, out: Path) -> dict[str, float]:
    """The same of a folder, in two processes: look at each path, read each file, hash, LZ4, write, flush."""
    files = [Path(folder) / name for folder, _, names in os.walk(tree) for name in sorted(names)]
    half = len(files) // 2
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    child = os.fork()
    if child == 0:
        _pack_files(files[half:], out.with_suffix(".other"))
        os._exit(0)
    _pack_files(files[:half], out)
    _, _, used = os.wait4(child, 0)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    out.with_suffix(".other").unlink()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + used.ru_utime + used.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def _pack_files(files: list[Path], out: Path) -> None:
    parts: list[bytes] = []
    size = 0
    with out.open("wb", buffering=0) as target:
        for path in files:
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(handle, os.fstat(handle).st_size, 0)
            finally:
                os.close(handle)
            for at in range(0, len(data), _PIECE):
                body = data[at : at + _PIECE]
                blake3(body).digest()
                packed: bytes = lz4.block.compress(body, store_size=False)
                parts.append(packed if len(packed) < len(body) else body)
                size += len(parts[-1])
            if size >= _BATCH:
                target.write(b"".join(parts))
                parts, size = [], 0
        target.write(b"".join(parts))
        os.fdatasync(target.fileno())


def scrub(segments: Path) -> dict[str, float]:
    """Read every sealed block and prove it."""

    def work() -> None:
        with ThreadPoolExecutor(2) as two:
            for _ in _ahead(runs(segments), prove, two):
                pass

    return _alone(work)


def hash_alone(segments: Path) -> dict[str, float]:
    """One thread that reads the same bytes into one buffer and hashes them, in pieces of a block."""

    def work() -> None:
        buffer = bytearray(_BATCH)
        view = memoryview(buffer)
        for path in sorted(segments.iterdir()):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    for at in range(0, count, BLOCK):
                        blake3(view[at : min(at + BLOCK, count)]).digest()

    return _alone(work)


def restore(segments: Path, image: Path, out: Path) -> dict[str, float]:
    """Read, prove, write where it belongs, flush. Where each block belongs is worked out beforehand."""
    handles: list[int] = []
    places: dict[bytes, tuple[int, int, int]] = {}
    for path in sorted(segments.iterdir()):
        handle = os.open(path, os.O_RDONLY)
        handles.append(handle)
        whole = os.pread(handle, path.stat().st_size, 0)
        for at, header in walk(memoryview(whole)[SEGMENT_HEADER_BYTES:]):
            places[header.block_id] = (handle, SEGMENT_HEADER_BYTES + at, header.sealed_bytes)
    plan: list[list[tuple[int, tuple[int, int, int]]]] = []
    with image.open("rb", buffering=0) as source:
        number = 0
        while data := source.read(_BATCH):
            names = [blake3(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
            plan.append([(number * _BATCH + n * BLOCK, places[name]) for n, name in enumerate(names) if name in places])
            number += 1

    def put(file: int, batch: list[tuple[int, tuple[int, int, int]]]) -> None:
        for at, (handle, offset, size) in batch:
            _, body = unseal(os.pread(handle, size, offset))
            os.pwrite(file, body, at)

    def work() -> None:
        file = os.open(out, os.O_WRONLY | os.O_CREAT, 0o600)
        with ThreadPoolExecutor(2) as two:
            for done in [two.submit(put, file, batch) for batch in plan]:
                done.result()
        os.ftruncate(file, image.stat().st_size)
        os.fsync(file)
        os.close(file)

    return _alone(work)


def incremental(image: Path) -> dict[str, float]:
    """To find what has changed, everything must be read and hashed."""

    def name(data: bytes) -> bytes:
        view = memoryview(data)
        return b"".join(blake3(view[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))

    def work() -> None:
        with image.open("rb", buffering=0) as source, ThreadPoolExecutor(2) as two:
            for _ in _ahead(iter(lambda: source.read(_BATCH), b""), name, two):
                pass

    return _alone(work)


def _alone(work: Callable[[], None]) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


_FLOORS: Final[dict[str, Callable[..., dict[str, float]]]] = {
    "sync": sync,
    "ingest": ingest,
    "ingest_tree": ingest_tree,
    "scrub": scrub,
    "hash": hash_alone,
    "restore": restore,
    "restore_from_peer": restore_from_peer,
    "incremental": incremental,
}

if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(_FLOORS[sys.argv[1]](*map(Path, sys.argv[2:]))))
