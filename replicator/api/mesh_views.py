"""What the API's handlers for rights, introductions, keys and bandwidth rules do, without any HTTP in it."""

from collections.abc import Callable
from typing import Any, Final

from protocol.ids import SiteId
from replicator.api.schema import PolicyRequest, ThrottleRequest
from replicator.catalog.model import StoredRule
from replicator.catalog.rights import WORDS
from replicator.core.errors import UsageError
from replicator.core.throttle import BURST_S, parse_rule
from replicator.jobs.parts import Parts
from replicator.net.mesh import Mesh
from replicator.net.pacing import NODE, WAYS
from replicator.sync.neighbours import Neighbours
from replicator.sync.policy import matrix

_LINK_S: Final = 10.0


class MeshViews:
    """The mesh as the API shows and changes it."""

    def __init__(
        self,
        parts: Parts,
        mesh: Mesh,
        *,
        neighbours: Neighbours,
        load_rules: Callable[[], None],
        keys: Callable[[], dict[str, Any]],
        rotate: Callable[[float], None],
    ) -> None:
        self._parts = parts
        self._mesh = mesh
        self._neighbours = neighbours
        self._load_rules = load_rules
        self._keys = keys
        self._rotate = rotate

    # -- rights ---------------------------------------------------------------------------

    def rights(self, name: str) -> dict[str, Any]:
        peer = self._parts.catalog.peers.find(name)
        by = peer.introduced_by
        return {
            "peer": peer.name,
            "site_id": peer.site_id.hex(),
            "may": sorted(peer.rights.may),
            "volumes": sorted(peer.rights.volumes),
            "introduced": sorted(peer.rights.introduced),
            "introduced_by": None if by is None else self._parts.catalog.peers.name_of(by),
        }

    def set_rights(self, name: str, request: PolicyRequest) -> dict[str, Any]:
        catalog = self._parts.catalog
        peer = catalog.peers.find(name)
        volumes = [catalog.find_volume(one).volume_id.hex() for one in request.volumes]
        changed = peer.rights.changed(
            allow=request.allow, deny=request.deny, volumes=volumes, introduced=request.introduced
        )
        catalog.peers.set_rights(peer.site_id, changed)
        return self.rights(name)

    def matrix(self) -> dict[str, Any]:
        """Who may ask what."""
        peers = self._parts.catalog.peers
        table = matrix(lambda site: peers.rights_of(site).may, {peer.name: peer.site_id for peer in peers.all()})
        return {"rights": WORDS, "peers": table}

    async def introduce(self, one: str, other: str) -> dict[str, Any]:
        peers = self._parts.catalog.peers
        first, second = peers.find(one), peers.find(other)
        if first.site_id == second.site_id:
            raise UsageError("A site knows itself.", hint="Name two peers.")
        links = [await self._mesh.wait_link(peer.site_id, seconds=_LINK_S) for peer in (first, second)]
        await self._neighbours.introduce(*links)
        return {"introduced": [first.name, second.name]}

    # -- keys -----------------------------------------------------------------------------

    def site(self) -> dict[str, Any]:
        return {**self._keys(), "addresses": list(self._mesh.addresses)}

    def rotate_key(self, overlap_s: float) -> dict[str, Any]:
        self._rotate(overlap_s)
        return self.site()

    # -- bandwidth ------------------------------------------------------------------------

    def throttle(self, request: ThrottleRequest) -> dict[str, Any]:
        """Change the bandwidth rules that are named, and show all of them. Links stay up."""
        catalog = self._parts.catalog
        scope = catalog.peers.find(request.peer).site_id if request.peer else NODE
        if request.reset:
            catalog.end_throttles(scope)
            if scope == NODE:
                self._mesh.pacing.reset_node()
        texts = {"out": request.out, "in": request.into}
        for way, rate in (("out", request.out_bytes_per_s), ("in", request.in_bytes_per_s)):
            if rate is not None:
                texts[way] = f"{max(0, rate)}B/s" if rate > 0 else "none"
        burst_s = BURST_S if request.burst_s is None else request.burst_s
        for way, text in texts.items():
            if text is not None:
                parse_rule(text, zone=request.zone, burst_s=burst_s)
                catalog.set_throttle(StoredRule(scope, way, text, request.zone, burst_s))
        self._load_rules()
        return self.throttles()

    def throttles(self) -> dict[str, Any]:
        pacing, now = self._mesh.pacing, self._parts.clock.now_ns()
        rules = []
        for one in self._parts.catalog.throttles():
            table = parse_rule(one.text, zone=one.zone, burst_s=one.burst_s).table
            changes = table.next_change_ns(now)
            rules.append(
                {
                    "scope": self._parts.catalog.peers.name_of(one.scope) if one.scope else "node",
                    "way": one.way,
                    "rule": one.text,
                    "zone": one.zone,
                    "burst_s": one.burst_s,
                    "now_bytes_per_s": table.at(now),
                    "changes_in_s": None if changes is None else round((changes - now) / 1e9, 1),
                }
            )
        passed = {f"{way}_passed_bytes": pacing.node[way].statistics().passed_bytes for way in WAYS}
        waited = {f"{way}_waited_s": round(pacing.node[way].statistics().waited_s, 3) for way in WAYS}
        shares = {self._name(site): rate for site, rate in pacing.shares().items()}
        return {
            "out_bytes_per_s": pacing.node["out"].rate_bytes,
            "in_bytes_per_s": pacing.node["in"].rate_bytes,
            "rules": rules,
            "shares_in": shares,
            **passed,
            **waited,
        }

    def _name(self, site: SiteId) -> str:
        return self._parts.catalog.peers.name_of(site)
