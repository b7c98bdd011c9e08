"""Nodes for tests: real ones in this process over loopback TLS, and real processes behind the command line.

A `Site` is put together by the composition root itself, so a test meets the parts as they are
joined in a node; only signals and the API's doors are left out. A `Node` is a process: made,
started, asked, killed and started again, each with a bound on the wait.
"""

import atexit
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from protocol.ids import BlockId, SnapshotId
from replicator.api.client import NodeClient
from replicator.app.base import open_base
from replicator.app.config import StateFolder
from replicator.app.node import LivingNode
from replicator.catalog.model import Snapshot, Volume
from replicator.core.progress import Progress
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.jobs.snapshot import SnapshotJobs
from replicator.net.identity import Identity
from replicator.net.link import Link
from replicator.net.mesh import Mesh
from replicator.store.local import LocalStore
from replicator.sync.offer import Offered, offer

T = TypeVar("T")
PATIENCE_S = 30.0
PROGRAM = (sys.executable, "-m", "replicator.app.main")


def write_state(root: Path, name: str, **settings: str) -> None:
    """What `init` makes, without starting a process for it. No ports are fixed unless `settings` say so."""
    values = {
        "name": name, "listen": "127.0.0.1:0", "http": "", "segment_size": "1MiB", "reserve": "0", "ballast": "0",
        **settings,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity.generate()
    while (identity.site_id[0] < 128) != (name == "home"):
        identity = Identity.generate()  # Of two, the lower id dials at once: let that be home, and nobody waits.
    identity.save(root / "identity.key")
    (root / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# -- in this process --------------------------------------------------------------------------


class Site:
    """A node in this process."""

    def __init__(self, living: LivingNode, store: LocalStore) -> None:
        self.living = living
        self.store = store
        self.parts: Parts = living.parts
        self.mesh: Mesh = living.mesh
        self.catalog = self.parts.catalog
        self.scope = trio.CancelScope()

    @property
    def name(self) -> str:
        return self.parts.site_name

    def protect(self, path: Path, *, kind: str = "tree") -> Volume:
        volume = Volume(
            volume_id=self.parts.entropy.token(16),  # type: ignore[arg-type]
            name=path.name,
            kind=kind,
            origin=self.parts.site_id,
            path=os.fsencode(path),
            block_bytes=64 * 1024 if kind == "image" else 0,
            exclude=(),
        )
        self.catalog.add_volume(volume)
        return volume

    async def take(self, volume: Volume) -> Snapshot:
        """A snapshot by the same job that the command line starts."""
        args = {"volumes": [volume.volume_id.hex()], "tags": []}
        context = JobContext(os.urandom(8).hex(), "snapshot", args, Progress(clock=time.monotonic))
        done = await SnapshotJobs(self.parts).run(context)
        return self.catalog.snapshot(bytes.fromhex(done["snapshots"][0]["snapshot"]))

    async def link_to(self, other: "Site") -> Link:
        return await self.mesh.wait_link(other.parts.site_id, seconds=PATIENCE_S)

    async def send(self, snapshot: Snapshot, other: "Site", *, every_s: int = 0) -> Offered:
        link = await self.link_to(other)
        return await offer(link, snapshot, every_s=every_s, job="test", on_progress=lambda _: None)

    def holds(self, snapshot: Snapshot) -> bool:
        return self.catalog.has_snapshot(snapshot.snapshot_id)

    def block_ids(self) -> set[BlockId]:
        packed = b"".join(self.store.ids())
        return {BlockId(packed[at : at + 32]) for at in range(0, len(packed), 32)}


@contextmanager
def open_site(root: Path, name: str, **settings: str) -> Iterator[Site]:
    """A site that does not listen yet. A second time on the same folder is a restart."""
    if not (root / "config.toml").exists():
        write_state(root, name, **settings)
    with open_base(StateFolder(root)) as base, LivingNode(base) as living:
        yield Site(living, base.store)


@asynccontextmanager
async def running(*sites: Site) -> AsyncIterator[None]:
    """Let sites listen, dial and work until the block ends."""
    async with trio.open_nursery() as nursery:
        for site in sites:
            nursery.start_soon(_serve, site)
        for site in sites:
            await wait_until(lambda site=site: not site.mesh.address.endswith(":0"))  # type: ignore[misc]
        yield
        nursery.cancel_scope.cancel()


async def _serve(site: Site) -> None:
    with site.scope:
        listener = await site.mesh.listen()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(site.mesh.run, listener)
                nursery.start_soon(site.living.run_jobs, trio.Event())
        finally:
            listener.close()


def trust(one: Site, other: Site, *, address: str | None = None) -> None:
    """Make them peers; only `one` dials, at `address` if it is given."""
    one.catalog.peers.add(other.parts.site_id, name=other.name, addresses=[address or other.mesh.address])
    other.catalog.peers.add(one.parts.site_id, name=one.name, addresses=[])
    one.mesh.trust_changed()
    other.mesh.trust_changed()


@asynccontextmanager
async def a_pair(folder: Path, **settings: str) -> AsyncIterator[tuple[Site, Site]]:
    """Two sites, home and cabin, that are peers and linked."""
    with open_site(folder / "home", "home", **settings) as home, open_site(folder / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            trust(home, cabin)
            await home.link_to(cabin)
            await cabin.link_to(home)
            yield home, cabin


async def wait_until(is_so: Callable[[], object], *, seconds: float = PATIENCE_S) -> None:
    with trio.fail_after(seconds):
        while not is_so():  # noqa: ASYNC110  (what is waited for has no event)
            await trio.sleep(0.02)


def write_tree(folder: Path, *, files: int, size: int, seed: int = 0) -> Path:
    """Files of bytes that do not compress, the same for the same seed."""
    import random

    rnd = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"file-{number:04}").write_bytes(rnd.randbytes(size))
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- processes --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", self.out + self.err)


def run_cli(*words: str, state: Path | None = None, prefix: tuple[str, ...] = (), cwd: Path | None = None) -> Said:
    """One command of the real program, in a process of its own. Never a traceback, whatever it is asked.

    Without a `prefix` it is forked from one that has loaded the program already: the same, but ten times as quick.
    """
    if not prefix and cwd is None:
        done = _FORKS.run([*words, *(() if state is None else ("--state", str(state)))])
        assert "Traceback" not in done.out + done.err, done.err
        return done
    command = [*prefix, *PROGRAM, *words, *(() if state is None else ("--state", str(state)))]
    path = f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env={**os.environ, "PYTHONPATH": path}, cwd=cwd
    )
    said = Said(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return said


class Forks:
    """A process that has loaded the program and waits: each line it reads is a command, run in a child of its own."""

    def __init__(self, *prefix: str) -> None:
        self._prefix = prefix
        self._process: subprocess.Popen[str] | None = None

    def run(self, words: list[str]) -> Said:
        if self._process is None:
            path = f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "tests.support.forks"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
            atexit.register(self.close)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return Said(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_FORKS = Forks()


class Node:
    """A node in a process of its own, with a port that it keeps over a restart."""

    def __init__(self, root: Path, name: str, **settings: str) -> None:
        self.root = root
        self.name = name
        self.process: subprocess.Popen[str] | None = None
        if not (root / "config.toml").exists():
            write_state(root, name, **{"listen": f"127.0.0.1:{free_port()}", "http": "127.0.0.1:0", **settings})
        self.client = NodeClient(StateFolder(root).socket)
        self.http = ""
        self.address = ""

    def start(self, *, prefix: tuple[str, ...] = ()) -> "Node":
        """Start it, and return once it says that it is up."""
        with (self.root / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *PROGRAM, "up", "--json", "--state", str(self.root)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            said = self._read_until_ready()
        except BaseException:
            self.kill()
            raise
        self.http, self.address = said["http"], said["address"]
        return self

    def _read_until_ready(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        text, deadline, out = "", time.monotonic() + PATIENCE_S, self.process.stdout.fileno()
        while time.monotonic() < deadline:
            ready, _, _ = select.select([out], [], [], 0.5)
            if ready:
                piece = os.read(out, 65536).decode()
                if not piece:
                    break
                text += piece
                if text.endswith("}\n"):
                    said: dict[str, Any] = json.loads(text)
                    assert "error" not in said, said
                    return said
        raise AssertionError(f"{self.name} did not come up: {text} {self.log()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop: {self.log()[-2000:]}") from None
        assert process.stdout is not None
        process.stdout.close()
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def log(self) -> str:
        return (self.root / "node.log").read_text(errors="replace")

    def cli(self, *words: str) -> Said:
        return run_cli(*words, state=self.root)

    def status(self) -> dict[str, Any]:
        page: dict[str, Any] = self.client.get("/v1/status")
        return page

    def job(self, kind: str, **args: Any) -> dict[str, Any]:
        return self.client.run_job(kind, args, job_id=os.urandom(8).hex(), on_progress=lambda _: None)

    def protect(self, path: Path, **more: Any) -> dict[str, Any]:
        done: dict[str, Any] = self.client.post("/v1/protect", {"path": str(path), **more})
        return done


@contextmanager
def started(*nodes: Node) -> Iterator[None]:
    """Run nodes; whatever happens, none is left behind."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            if node.process is not None:
                node.kill()
            node.client.close()


def become_peers(inviter: Node, joiner: Node) -> None:
    joiner.client.post("/v1/pair/join", {"code": inviter.client.post("/v1/pair/invite", {})["code"]})
    eventually(lambda: inviter.status()["peers"][-1]["linked"] and joiner.status()["peers"][-1]["linked"])


def eventually(answer: Callable[[], T], *, seconds: float = PATIENCE_S) -> T:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while True:
        if value := answer():
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def snapshot_id(text: str) -> SnapshotId:
    return SnapshotId(bytes.fromhex(text))
