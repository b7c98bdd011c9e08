"""A process that has loaded the program: for each line it reads there is one more process, at once.

Starting Python and importing the program takes longer than most points of a fault suite; a fork takes milliseconds.

    {"key": K, "work": NAME, "args": {...}, "said": FILE}     one of tests/faults/work.py
    {"key": K, "words": [...], "said": FILE, "stop": true}    the command line itself, stopped before its first step

It answers with lines {"key", "pid", "event": "forked" | "stopped" | "ended", "code"}. A child that is to be watched
from an exact moment on stops itself there, and the driver attaches and lets it go on.
"""

import ctypes
import json
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import replicator.api.client
import replicator.app.node  # noqa: F401  (loaded here, once)
from replicator.app.main import main
from tests.faults import work

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)


def fork(request: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_PTRACER, _ANYBODY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    errors = os.open(request["said"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(errors, 2)
    code = 1
    try:
        if "words" in request:
            if request.get("stop"):
                work.wait_to_be_watched()
            try:
                main(request["words"])
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
        else:
            code = work.run(request["work"], request["args"])
    except BaseException:  # noqa: BLE001  (shown, as an interpreter would)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tell(**event: Any) -> None:
    os.write(1, (json.dumps(event) + "\n").encode())


def reap(keys: dict[int, str]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if not pid:
            return
        if os.WIFSTOPPED(status):
            tell(key=keys[pid], pid=pid, event="stopped")
        else:
            tell(key=keys.pop(pid), pid=pid, event="ended", code=os.waitstatus_to_exitcode(status))


def serve() -> None:
    assert threading.active_count() == 1, "a process with threads must not fork"
    readable, writable = os.pipe()
    for end in (readable, writable):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    keys: dict[int, str] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([0, readable], [], [])
        if readable in ready:
            os.read(readable, 4096)
            reap(keys)
        if 0 in ready:
            piece = os.read(0, 65536)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = fork(request)
                keys[pid] = request["key"]
                tell(key=request["key"], pid=pid, event="forked")
    for pid in keys:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    serve()
