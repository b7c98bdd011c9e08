"""Who holds the same as whom: classes of sites, by the roots that travel with heartbeats.

Sites whose roots of a volume are equal hold the same snapshots of it, so one of them speaks for all: to compare N
sites takes as many sessions as there are classes, less one. A site that knows of a hole in its store stands alone.

What a peer said last may be old; the age says so. A root is a hint where to look, and never a receipt.
"""

from collections.abc import Callable
from typing import Any

import trio

from protocol.ids import SiteId, VolumeId
from replicator.index.roots import HOLES, ScopeRoot
from replicator.sync.standing import Standing


def standing_page(standing: Standing, *, name_of: Callable[[SiteId], str], may_show: set[SiteId]) -> dict[str, Any]:
    """Our digest, and what each peer said last. Only sites in `may_show`: one that was revoked is not spoken of."""
    ours = standing.roots()
    return {
        "digest": standing.digest.hex(),
        "scopes": len(ours),
        "holes": _holes(ours),
        "peers": [
            {
                "peer": name_of(site),
                "digest": heard.digest.hex(),
                "holes": _holes(heard.roots),
                "is_same": heard.digest == standing.digest,
                "heard_s": round(trio.current_time() - heard.at, 3),
            }
            for site, heard in sorted(standing.heard.items(), key=lambda one: name_of(one[0]))
            if site in may_show
        ],
    }


def classes_page(
    standing: Standing, volume: VolumeId, *, name_of: Callable[[SiteId], str], may_show: set[SiteId]
) -> list[dict[str, Any]]:
    """The classes of the sites that hold something of a volume, the largest first."""
    page: list[dict[str, Any]] = []
    for sites in standing.classes_of(volume):
        shown = sorted(name_of(site) for site in sites if site in may_show)
        roots = standing.roots_of(sites[0])
        root = next((one for one in roots if one.scope == volume), None)
        if root is None or not shown:
            continue
        page.append(
            {
                "sites": shown,
                "snapshots": root.count,
                "root": f"{root.sum_a:016x}{root.sum_b:016x}",
                "has_holes": bool(_holes(roots)),
            }
        )
    return page


def _holes(roots: tuple[ScopeRoot, ...]) -> int:
    return sum(root.count for root in roots if root.scope == HOLES)


__all__ = ["classes_page", "standing_page"]
