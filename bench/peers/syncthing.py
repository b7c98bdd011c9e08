"""Syncthing: two instances over its own TLS, told by their API to scan and to be in sync."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from bench.peers.base import BenchError, Subject, flush, free_port

_PATIENCE_S: Final = 900.0


class Syncthing(Subject):
    """One copy, encrypted on the way, no history. Both sides run all the time, as ours do."""

    name = "syncthing"
    needs = ("syncthing",)

    def start(self) -> None:
        self._sides = [_Side(self.work / name) for name in ("near", "far")]
        for side in self._sides:
            self.run("syncthing", "generate", "--skip-port-probing", "--no-default-folder", f"--home={side.home}")
            side.configure()
        # It watches its folder, and would see the bench's own files beside an image: an image has a folder of its own.
        near = self.source
        if self.source.is_file():
            near = self.work / "shared"
            near.mkdir()
            (near / self.source.name).hardlink_to(self.source)
        (self.work / "copy").mkdir()
        for side in self._sides:
            self.listen(
                "syncthing", "serve", "--no-browser", "--no-restart", "--no-upgrade", f"--home={side.home}",
                port=side.api_port,
            )  # fmt: skip
        self._ids = [side.wait_id() for side in self._sides]
        for side, folder, other in zip(self._sides, (near, self.work / "copy"), reversed(range(2)), strict=True):
            there = {"deviceID": self._ids[other], "addresses": [f"tcp://127.0.0.1:{self._sides[other].port}"]}
            side.put(f"config/devices/{self._ids[other]}", there)
            members = [{"deviceID": one} for one in self._ids]
            direction = "sendonly" if other else "receiveonly"
            shared = {"id": "bench", "path": str(folder), "devices": members, "type": direction, "paused": True}
            side.put("config/folders/bench", {**shared, "fsWatcherEnabled": False, "rescanIntervalS": 86400})
        (near / ".stfolder").mkdir(exist_ok=True)
        (self.work / "copy/.stfolder").mkdir(exist_ok=True)
        self._is_first = True

    def copy(self) -> None:
        near, far = self._sides
        if self._is_first:
            for side in reversed(self._sides):
                side.patch("config/folders/bench", {"paused": False})
            self._is_first = False
        near.post("db/scan?folder=bench")
        deadline = time.monotonic() + _PATIENCE_S
        while not self._is_in_sync(near, far):
            if time.monotonic() > deadline:
                raise BenchError("syncthing: not in sync after a quarter of an hour")
            time.sleep(0.1)
        flush(self.work)

    def _is_in_sync(self, near: "_Side", far: "_Side") -> bool:
        here, there = near.get("db/status?folder=bench"), far.get("db/status?folder=bench")
        return bool(
            here["state"] == there["state"] == "idle"
            and there["needFiles"] == there["needBytes"] == 0
            and here["globalBytes"] == there["globalBytes"] > 0
            # What the far side has announced to the near one: only that ends a change of equal size.
            and near.get(f"db/completion?folder=bench&device={self._ids[1]}")["completion"] == 100
        )


class _Side:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.port, self.api_port = free_port(), free_port()
        self._key = ""

    def configure(self) -> None:
        path = self.home / "config.xml"
        text = path.read_text()
        text = re.sub(r"<listenAddress>[^<]*", f"<listenAddress>tcp://127.0.0.1:{self.port}", text)
        text = re.sub(r"(<gui[^>]*>\s*<address>)[^<]*", rf"\g<1>127.0.0.1:{self.api_port}", text)
        for name in ("globalAnnounceEnabled", "localAnnounceEnabled", "relaysEnabled", "natEnabled"):
            text = re.sub(f"<{name}>true", f"<{name}>false", text)
        path.write_text(text)
        found = re.search(r"<apikey>([^<]*)", text)
        assert found is not None
        self._key = found.group(1)

    def wait_id(self) -> str:
        identity: str = self.get("system/status")["myID"]
        return identity

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def put(self, path: str, value: object) -> None:
        self._ask("PUT", path, value)

    def patch(self, path: str, value: object) -> None:
        self._ask("PATCH", path, value)

    def post(self, path: str) -> None:
        self._ask("POST", path, None)

    def _ask(self, method: str, path: str, value: object) -> Any:
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.api_port}/rest/{path}", body, method=method)
        request.add_header("X-API-Key", self._key)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            content = answer.read()
        return json.loads(content) if content.strip() else None
