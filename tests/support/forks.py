"""Commands of the program, each in a fork of this process: it has loaded everything, so they start at once.

python -m tests.support.forks      reads lines of JSON lists of words; answers lines of code, out, err

`["!", "mount …"]` is a command of the shell: this process may live in a namespace of its own.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import replicator.api.client
import replicator.app.node  # noqa: F401  (loaded here, once)
from replicator.app.main import main

_MOST_S = 90


def run(words: list[str], out: Path, err: Path) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(_MOST_S)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if words[0] == "!":
        os.execvp("sh", ["sh", "-c", words[1]])
    try:
        main(words)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:  # noqa: BLE001  (shown, as an interpreter would)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    return 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "out", Path(folder) / "err"
        for line in sys.stdin:
            code = run(json.loads(line), *paths)
            texts = [path.read_text(errors="replace") for path in paths]
            print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), flush=True)
