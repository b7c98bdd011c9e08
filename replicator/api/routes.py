"""The API's routes for site syncs and for the mesh, all on the socket only; the others are in `api/server.py`."""

from typing import Any

from litestar import delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from replicator.api.mesh_views import MeshViews
from replicator.api.schema import (
    IncomingRequest,
    IntroduceRequest,
    PauseRequest,
    PolicyRequest,
    RotateRequest,
    SyncChange,
    SyncRequest,
    ThrottleRequest,
)
from replicator.api.sync_views import SyncViews


def sync_routes(view: SyncViews) -> list[Any]:
    """Site syncs, and copies from elsewhere."""

    @get("/v1/syncs", sync_to_thread=False)
    def syncs() -> list[dict[str, Any]]:
        return view.all()

    @post("/v1/syncs", sync_to_thread=False)
    def sync_add(data: JSONBody[SyncRequest]) -> dict[str, Any]:
        return view.add(data)

    @patch("/v1/syncs/{sync_id:str}", sync_to_thread=False)
    def sync_change(sync_id: FromPath[str], data: JSONBody[SyncChange]) -> dict[str, Any]:
        return view.change(sync_id, data)

    @delete("/v1/syncs/{sync_id:str}", sync_to_thread=False, status_code=200)
    def sync_remove(sync_id: FromPath[str]) -> dict[str, Any]:
        return view.remove(sync_id)

    @post("/v1/syncs/{sync_id:str}/pause", sync_to_thread=False)
    def sync_pause(sync_id: FromPath[str], data: JSONBody[PauseRequest]) -> dict[str, Any]:
        return view.pause(sync_id, paused=data.paused)

    @get("/v1/syncs/{sync_id:str}/plan")
    async def sync_plan(sync_id: FromPath[str]) -> list[dict[str, Any]]:
        return await view.plan(sync_id)

    @get("/v1/sync-queue", sync_to_thread=False)
    def sync_queue() -> list[dict[str, Any]]:
        return view.queue()

    @get("/v1/sync-history", sync_to_thread=False)
    def sync_history(sync: FromQuery[str] = "", limit: FromQuery[int] = 50) -> list[dict[str, Any]]:
        return view.history(sync, limit=limit)

    @get("/v1/incoming", sync_to_thread=False)
    def incoming() -> list[dict[str, Any]]:
        return view.incoming()

    @post("/v1/incoming", sync_to_thread=False)
    def incoming_decide(data: JSONBody[IncomingRequest]) -> dict[str, Any]:
        return view.decide(data)

    return [
        syncs, sync_add, sync_change, sync_remove, sync_pause, sync_plan, sync_queue, sync_history, incoming,
        incoming_decide,
    ]  # fmt: skip


def mesh_routes(view: MeshViews) -> list[Any]:
    """Rights of peers, introductions, keys, bandwidth rules."""

    @get("/v1/peers/{name:str}/rights", sync_to_thread=False)
    def rights(name: FromPath[str]) -> dict[str, Any]:
        return view.rights(name)

    @post("/v1/peers/{name:str}/rights", sync_to_thread=False)
    def rights_set(name: FromPath[str], data: JSONBody[PolicyRequest]) -> dict[str, Any]:
        return view.set_rights(name, data)

    @get("/v1/rights", sync_to_thread=False)
    def matrix() -> dict[str, Any]:
        return view.matrix()

    @post("/v1/pair/introduce")
    async def introduce(data: JSONBody[IntroduceRequest]) -> dict[str, Any]:
        return await view.introduce(data.one, data.other)

    @get("/v1/site", sync_to_thread=False)
    def site() -> dict[str, Any]:
        return view.site()

    @post("/v1/site/rotate-key", sync_to_thread=False)
    def rotate_key(data: JSONBody[RotateRequest]) -> dict[str, Any]:
        return view.rotate_key(data.overlap_s)

    @get("/v1/throttle", sync_to_thread=False)
    def throttles() -> dict[str, Any]:
        return view.throttles()

    @post("/v1/throttle", sync_to_thread=False)
    def throttle(data: JSONBody[ThrottleRequest]) -> dict[str, Any]:
        return view.throttle(data)

    return [rights, rights_set, matrix, introduce, site, rotate_key, throttles, throttle]
