"""Speaking to a running node from another process on the same machine.

Every call that changes something carries an id chosen here, so a call whose answer was lost,
because the node was restarted in the middle, is simply made again.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from replicator.core.errors import NodeDown, NotFound, ReplicatorError, UsageError

_SHOWN_S: Final = 0.15
"""How often somebody who waits for a job sees how far it is."""
_UNFINISHED: Final = ("queued", "running")


class RemoteError(ReplicatorError):
    """An error that the node reported, with the node's own code and exit code."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body.get("message", "The node reported an error."), hint=body.get("hint", ""))
        self.code = body.get("code", "internal")  # type: ignore[misc]
        self.exit_code = body.get("exit_code", 70)  # type: ignore[misc]


def _encode(body: dict[str, Any]) -> bytes:
    """Raises `UsageError` for a name with bytes that are no text: JSON cannot carry them."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Paths are spelled so that this does not happen (`core/paths.py`); a name or a pattern is text or nothing.
        odd = [text for text in _texts(body) if not text.isascii() and not _is_utf8(text)]
        raise UsageError(f"{odd[0]} has bytes that are not UTF-8.", hint="Only paths may have such bytes.") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def segment(name: str) -> str:
    """A name that someone typed, as one segment of an URL. Raises `NotFound`: nothing is called that."""
    if not name or "/" in name or name in (".", ".."):
        raise NotFound(f"There is nothing called {name!r}.", hint="Give a name, or the beginning of an id.")
    return quote(name, safe="", errors="surrogateescape")


class NodeClient:
    """A client of one node's socket. `patience_s` is how long to wait for a node that does not answer."""

    def __init__(self, socket_path: Path, *, patience_s: float = 0.0) -> None:
        self._socket_path = socket_path
        self._patience_s = patience_s
        # Over a socket of this machine nothing is encrypted: certificates would only be read for nothing, which takes
        # longer than most commands, and fails where the environment names a file that is not there.
        transport = httpx.HTTPTransport(uds=str(socket_path), verify=False, trust_env=False)
        self._http = httpx.Client(transport=transport, base_url="http://node", timeout=60.0, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, /, **query: Any) -> Any:
        return self._call("GET", path, query=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, body=body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, *, query: Any = None, body: Any = None) -> Any:
        deadline = time.monotonic() + self._patience_s
        content = None if body is None else _encode(body)
        while True:
            try:
                answer = self._http.request(
                    method, path, params=query, content=content, headers={"content-type": "application/json"}
                )
                break
            except httpx.TransportError as error:
                if time.monotonic() >= deadline:
                    raise NodeDown(
                        f"No node answers at {self._socket_path}.", hint="Start it with `replicator up`."
                    ) from error
                time.sleep(0.1)
        if answer.status_code >= 400:
            raise RemoteError(answer.json())
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text

    def job(self, job_id: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """A job and how far it is; if it ends within `wait_s` (a second at most), at once when it has ended."""
        job: dict[str, Any] = self.get(f"/v1/jobs/{segment(job_id)}", wait_s=wait_s)
        return job

    def run_job(
        self, kind: str, args: dict[str, Any], *, job_id: str, on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Submit a job, show how it goes, and return its result. Raises `RemoteError` if it failed."""
        job = self.post("/v1/jobs", {"kind": kind, "args": args, "job_id": job_id})
        while job["state"] in _UNFINISHED:
            on_progress(job)
            job = self.job(job_id, wait_s=_SHOWN_S)
        if job["state"] == "failed":
            raise RemoteError(job["error"])
        if job["state"] == "cancelled":
            raise RemoteError({"code": "job_cut", "message": f"Job {job_id} was cancelled.", "exit_code": 75})
        result: dict[str, Any] = job["result"]
        return result
