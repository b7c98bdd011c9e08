"""The node's HTTP API.

Two doors, one set of handlers. The Unix socket in the state directory takes everything: who
may open it is the file system's decision. The TCP port on loopback only answers questions
(status, health, metrics), so that Prometheus and a browser can look without any right to act.
"""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from litestar import Litestar, Request, Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.params import FromPath, FromQuery, JSONBody
from prometheus_client import CONTENT_TYPE_LATEST

from replicator.api.routes import mesh_routes, sync_routes
from replicator.api.schema import (
    DeletionRequest,
    HoldRequest,
    InviteRequest,
    JobRequest,
    JoinRequest,
    ProtectRequest,
)
from replicator.api.views import NodeView
from replicator.core.errors import ConfigError, ReplicatorError
from replicator.core.logging import get_logger
from replicator.net.address import split_address

_HTTP_STATUS: Final = {64: 400, 66: 404, 73: 507, 75: 409, 77: 403}


def _on_error(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    assert isinstance(error, ReplicatorError)
    body = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    return Response(body, status_code=_HTTP_STATUS.get(error.exit_code, 500))


def _on_http_error(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    assert isinstance(error, HTTPException)
    is_ours = error.status_code >= 500
    code, exit_code = ("internal", 70) if is_ours else ("usage", 64)
    body = {"code": code, "message": error.detail, "hint": "", "exit_code": exit_code}
    return Response(body, status_code=error.status_code)


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """A mistake of ours: whoever asked gets a sentence, and the log gets the rest."""
    get_logger().error("api.bug", path=request.url.path, exc_info=error)
    message, hint = f"An internal error: {error!r}.", "Please report it with the log line `api.bug`."
    return Response({"code": "internal", "message": message, "hint": hint, "exit_code": 70}, status_code=500)


def make_apps(view: NodeView) -> tuple[Litestar, Litestar]:
    """The application for the socket, and the one that may only look."""

    @get("/v1/status", sync_to_thread=False)
    def status() -> dict[str, Any]:
        return view.status()

    @get("/health", sync_to_thread=False)
    def health() -> dict[str, str]:
        return {"health": "up"}

    @get("/metrics", media_type=CONTENT_TYPE_LATEST, sync_to_thread=False)
    def metrics() -> bytes:
        return view.metrics()

    @get("/v1/peers", sync_to_thread=False)
    def peers() -> list[dict[str, Any]]:
        return view.peers()

    @delete("/v1/peers/{name:str}", sync_to_thread=False, status_code=200)
    def revoke(name: FromPath[str]) -> dict[str, Any]:
        return view.revoke(name)

    @post("/v1/pair/invite", sync_to_thread=False)
    def invite(data: JSONBody[InviteRequest]) -> dict[str, Any]:
        return view.invite(minutes=data.minutes)

    @post("/v1/pair/join")
    async def pair_join(data: JSONBody[JoinRequest]) -> dict[str, Any]:
        return await view.join(data.code)

    @post("/v1/protect", sync_to_thread=False)
    def protect(data: JSONBody[ProtectRequest]) -> dict[str, Any]:
        return view.protect(data)

    @delete("/v1/protect/{name:str}", sync_to_thread=False, status_code=200)
    def unprotect(name: FromPath[str]) -> dict[str, Any]:
        return view.unprotect(name)

    @get("/v1/volumes", sync_to_thread=False)
    def volumes() -> list[dict[str, Any]]:
        return view.volumes()

    @get("/v1/snapshots", sync_to_thread=False)
    def snapshots(volume: FromQuery[str] = "") -> list[dict[str, Any]]:
        return view.snapshots(volume)

    @get("/v1/snapshots/{name:str}", sync_to_thread=False)
    def snapshot(name: FromPath[str]) -> dict[str, Any]:
        return view.snapshot(name)

    @get("/v1/snapshots/{name:str}/entries")
    async def snapshot_entries(name: FromPath[str], path: FromQuery[str] = "") -> list[dict[str, Any]]:
        return await view.entries(name, path)

    @delete("/v1/snapshots/{name:str}", sync_to_thread=False, status_code=200)
    def snapshot_delete(name: FromPath[str]) -> dict[str, Any]:
        return view.delete_snapshot(name)

    @post("/v1/snapshots/{name:str}/hold", sync_to_thread=False)
    def snapshot_hold(name: FromPath[str], data: JSONBody[HoldRequest]) -> dict[str, Any]:
        return view.hold(name, data.reason)

    @get("/v1/jobs", sync_to_thread=False)
    def jobs(limit: FromQuery[int] = 50) -> list[dict[str, Any]]:
        return view.jobs(limit)

    @post("/v1/jobs", sync_to_thread=False)
    def job_submit(data: JSONBody[JobRequest]) -> dict[str, Any]:
        return view.submit(data)

    @get("/v1/jobs/{job_id:str}")
    async def job(job_id: FromPath[str], wait_s: FromQuery[float] = 0.0) -> dict[str, Any]:
        return await view.job(job_id, wait_s=wait_s)

    @delete("/v1/jobs/{job_id:str}", sync_to_thread=False, status_code=200)
    def job_cancel(job_id: FromPath[str]) -> dict[str, Any]:
        return view.cancel(job_id)

    @get("/v1/repairs", sync_to_thread=False)
    def repairs(limit: FromQuery[int] = 100) -> list[dict[str, Any]]:
        return view.repairs(limit)

    @get("/v1/scrub", sync_to_thread=False)
    def scrub() -> dict[str, Any]:
        return view.scrub()

    @post("/v1/deletion", sync_to_thread=False)
    def deletion(data: JSONBody[DeletionRequest]) -> dict[str, Any]:
        return view.switch_deletion(data)

    looking = [status, health, metrics]
    acting = [
        peers, revoke, invite, pair_join, protect, volumes, snapshots, snapshot, snapshot_entries,
        snapshot_delete, snapshot_hold, jobs, job_submit, job, job_cancel, repairs, unprotect, scrub, deletion,
        *sync_routes(view.syncs), *mesh_routes(view.mesh),
    ]  # fmt: skip
    return _app([*looking, *acting], with_schema=True), _app(looking, with_schema=False)


def _app(handlers: Sequence[Any], *, with_schema: bool) -> Litestar:
    return Litestar(
        route_handlers=handlers,
        exception_handlers={ReplicatorError: _on_error, HTTPException: _on_http_error, Exception: _on_bug},
        openapi_config=OpenAPIConfig(title="replicator", version="1") if with_schema else None,
        # Litestar would otherwise put its own handler on the root logger and print everything twice.
        logging_config=None,
    )


class ApiServer:
    """Both doors. Bind first (so that a taken port is an error at the start), then run."""

    def __init__(self, view: NodeView, *, socket_path: Path, http: str) -> None:
        self._full, self._looking = make_apps(view)
        self._socket_path = socket_path
        self._http = http
        self._unix: socket.socket | None = None
        self._tcp: socket.socket | None = None
        self.http_address = http

    def bind(self) -> None:
        """Raises `ConfigError`. The caller holds the store's lock, so a socket file that is here is a leftover."""
        folder = self._socket_path.parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid():
            # In /tmp anybody may have made it first, to put another socket in place of ours.
            raise ConfigError(f"{folder} belongs to somebody else.", hint="Remove it, or choose a shorter --state.")
        self._socket_path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._unix = socket.socket(socket.AF_UNIX)
            self._unix.bind(str(self._socket_path))
            self._unix.listen(64)
        finally:
            os.umask(before)
        if self._http:
            self._tcp = _bind_tcp(self._http)
            self.http_address = f"{self._http.rpartition(':')[0]}:{self._tcp.getsockname()[1]}"

    async def run(self, *, shutdown: Callable[[], Any]) -> None:
        """Serve until `shutdown` returns."""
        async with trio.open_nursery() as nursery:
            assert self._unix is not None
            nursery.start_soon(_serve, self._full, self._unix, shutdown)
            if self._tcp is not None:
                nursery.start_soon(_serve, self._looking, self._tcp, shutdown)

    def close(self) -> None:
        for one in (self._unix, self._tcp):
            if one is not None:
                one.close()
        self._socket_path.unlink(missing_ok=True)


def _bind_tcp(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot serve HTTP on {address}: {error.strerror}.",
            hint='Another program has that port: change `http` in config.toml, or set it to "" for none.',
        ) from error
    listener.listen(64)
    return listener


class _BoundConfig(Config):
    """Hypercorn's settings over a socket that we have bound ourselves."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__()
        self._bound = bound
        self.accesslog = None
        self.errorlog = None
        self.graceful_timeout = 0.5
        self.shutdown_timeout = 1.0

    def create_sockets(self) -> Sockets:
        return Sockets([], [self._bound], [])


async def _serve(app: Litestar, bound: socket.socket, shutdown: Callable[[], Any]) -> None:
    await serve(app, _BoundConfig(bound), shutdown_trigger=shutdown)  # type: ignore[arg-type]
