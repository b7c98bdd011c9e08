"""EIO at each of the first so many flushes: nothing is acknowledged after it, and nothing from before it is lost.

That a node raises an alert within a second of it is looked at in `mesh`.
"""

import itertools
from collections.abc import Iterator

from tests.faults.points import Judged, Point, play
from tests.faults.stage import Stage


def first_flushes(stage: Stage, *, count: int, seed: int) -> Iterator[Judged]:
    """`commit` under EIO at the first, second, … fsync and fdatasync, until it makes no more of them."""
    for call in ("fsync", "fdatasync"):
        for number in itertools.count(1):
            if number > count:
                break
            judged = play(stage, Point("commit", call, number, "error=EIO", seed))
            if not judged.reached:
                break
            yield judged
