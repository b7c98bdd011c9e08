"""Every command in one program. Importing this takes most of a second: see `app/main.py`."""

from cyclopts import App, Parameter

from replicator import __version__
from replicator.app.cli import care, demo, gc, node, pair, protect, restore, scrub, seed, site, sync, throttle

_HELP = """Keep the data of several sites alive.

A first replicated snapshot takes five commands: `up --detach` on each of two machines, `pair invite` on one and
`pair join` on the other, and `protect PATH --every 1h --keep 24h,7d,4w --to SITE`.
"""


def _default_worth_showing(value: object) -> str | None:
    """A default that says something. That a switch is off and a text is empty goes without saying."""
    return str(value) if value or (value == 0 and value is not False) else None


app = App(
    name="replicator",
    default_parameter=Parameter(negative_iterable=(), show_default=_default_worth_showing),
    help=_HELP,
    version=__version__,
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `app/main.py` says what goes on without us.
)
for _topic in (node, pair, site, protect, sync, throttle, seed, scrub, care, gc, restore, demo):
    _topic.register(app)
