"""The program: parse, run one command, and turn every outcome into words and an exit code.

Exit codes: 0 done; 1 done, with findings that need a person; 64 and above as in sysexits.h
(`docs/operations.md`); 130 for Ctrl-C.
"""

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from replicator import __version__
from replicator.app.cli import care, demo, gc, node, pair, protect, restore, scrub, sync
from replicator.app.cli.output import Output
from replicator.core.errors import ReplicatorError, UsageError

_HELP = """Keep the data of several sites alive.

A first replicated snapshot takes five commands: `up --detach` on each of two machines, `pair invite` on one and
`pair join` on the other, and `protect PATH --every 1h --keep 24h,7d,4w --to SITE`.
"""

app = App(name="replicator", help=_HELP, version=__version__, help_format="markdown", result_action="return_value")
for _topic in (node, pair, protect, sync, scrub, care, gc, restore, demo):
    _topic.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    output = Output(as_json="--json" in tokens)
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except* CycloptsError as group:
        mistyped = UsageError(str(_first(group)).strip(), hint=f"See `{_command_of(tokens)} --help`.")
        output.error(mistyped)
        code = mistyped.exit_code
    except* ReplicatorError as group:
        error = _first(group)
        assert isinstance(error, ReplicatorError)
        output.error(error)
        code = error.exit_code
    except* KeyboardInterrupt:
        output.clear()
        print("Stopped. What the node was doing for this command goes on: see `replicator jobs list`.", file=sys.stderr)
        code = 130
    except* BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except* OSError as group:
        error = _first(group)
        output.error(ReplicatorError(f"The system refused: {error}.", hint="See the message for the path."))
        code = 74
    except* Exception as group:  # noqa: BLE001  (the last line of defence, and it is shown)
        # A mistake of ours. The traceback is for whoever mends it, and 1 would mean "done, with findings".
        traceback.print_exception(group)
        bug = ReplicatorError(f"An internal error: {_first(group)!r}.", hint="Please report it with the lines above.")
        output.error(bug)
        code = bug.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _command_of(tokens: Sequence[str]) -> str:
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
