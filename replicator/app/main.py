"""The program: parse, run one command, and turn every outcome into words and an exit code.

Exit codes: 0 done; 1 done, with findings that need a person; 64 and above as in sysexits.h
(`docs/operations.md`); 130 for Ctrl-C.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

_STOPPED: Final = "Stopped. What the node was doing for this command goes on: see `replicator jobs list`."
_HINT: Final = "Look at what the message names, and run it again."
_HINTS: Final = {
    errno.ENOSPC: "Make room where it was writing, and run it again.",
    errno.EACCES: "Run it as a user who may do that.",
    errno.EPERM: "Run it as a user who may do that.",
    errno.EROFS: "That file system is mounted read-only.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    is_for_us = _stop_at_once_if_asked()
    # Here and not above: what comes with these takes most of a second, in which people do change their minds.
    from cyclopts import CycloptsError

    from replicator.app.cli.output import Output
    from replicator.app.cli.program import app
    from replicator.core.errors import ReplicatorError, UsageError

    tokens = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    output = Output(as_json="--json" in tokens)
    try:
        if is_for_us:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        if is_for_us:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # All is said and done.
    except* CycloptsError as group:
        mistyped = UsageError(str(_first(group)).strip(), hint=f"See `{_command_of(app, tokens)} --help`.")
        output.error(mistyped)
        code = mistyped.exit_code
    except* ReplicatorError as group:
        error = _first(group)
        assert isinstance(error, ReplicatorError)
        output.error(error)
        code = error.exit_code
    except* KeyboardInterrupt:
        output.clear()
        print(_STOPPED, file=sys.stderr)
        code = 130
    except* BrokenPipeError:
        # Whoever read our output has seen enough.
        code = 0
    except* OSError as group:
        error = _first(group)
        assert isinstance(error, OSError)
        output.error(ReplicatorError(f"The system refused: {error}.", hint=_HINTS.get(error.errno or 0, _HINT)))
        code = 74
    except* Exception as group:  # noqa: BLE001  (the last line of defence, and it is shown)
        # A mistake of ours. The traceback is for whoever mends it, and 1 would mean "done, with findings".
        import traceback

        traceback.print_exception(group)
        bug = ReplicatorError(f"An internal error: {_first(group)!r}.", hint="Please report it with the lines above.")
        output.error(bug)
        code = bug.exit_code
    _let_go_of_output()
    sys.exit(code if isinstance(code, int) else 0)


def _stop_at_once_if_asked() -> bool:
    """Ctrl-C while the program is being loaded ends it with a word: no `except` is around all of that.

    Answers whether Ctrl-C is for us at all; in the background of a shell it is not.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, _stop_at_once)
    return True


def _stop_at_once(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Stopped before anything was done.\n")
    os._exit(130)


def _prepare_streams() -> None:
    """Whatever the terminal's encoding is, and even if whoever started us closed a stream, there is one to print to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open until the end)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_output() -> None:
    """What could not be written was said above. Python would try once more at its end, and make that the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command_of(app: Any, tokens: Sequence[str]) -> str:
    """`replicator pair join`, of whatever was typed: what `--help` can be asked of."""
    known, words = app, ["replicator"]
    for token in tokens:
        if token.startswith("-") or token not in known:
            break
        known = known[token]
        words.append(token)
    return " ".join(words)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


if __name__ == "__main__":
    main()
