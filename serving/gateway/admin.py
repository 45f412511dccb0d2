"""The admin API: look at replicas and contexts, drain and undrain replicas, move a context. Needs the admin token."""

from __future__ import annotations

import hmac
import uuid
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from serving.contexts.moves import elsewhere
from serving.contexts.pool_client import PoolClient
from serving.engine.messages import HandOff
from serving.errors import EngineLost
from serving.router.policy import decoding
from serving.types import MoveReason, MoveWish


class AdminController(Protocol):
    """The controller, as far as the admin API needs it."""

    async def status(self) -> dict[str, Any]: ...

    async def drain(self, replica_id: str, deadline_s: float | None = None) -> bool: ...

    async def undrain(self, replica_id: str) -> bool: ...

    async def contexts(self) -> list[dict[str, Any]]: ...

    async def pass_on(self, wish: MoveWish, asked_by: str) -> bool: ...


class DrainBody(BaseModel):
    """Body of a drain; it may be left out."""

    model_config = ConfigDict(extra="forbid")

    deadline_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds until the replica leaves."""


class MoveBody(BaseModel):
    """Body of a move."""

    model_config = ConfigDict(extra="forbid")

    destination: str | None = None
    mode: Literal["kv", "replay"] = "kv"


def admin_router(token: str, controller: AdminController, pool: PoolClient, *, gateway_id: str) -> APIRouter:
    """Routes under /admin/v1 of the gateway `gateway_id`.

    Its own contexts are fresh and move at once. Those of other gateways are as these reported them, within a second
    or two, and the controller passes the wish to move one on.
    """

    def check(authorization: str = Header(default="")) -> None:
        given = authorization.removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the admin API needs the token of this deployment")

    async def of_others() -> list[dict[str, Any]]:
        return [context for context in await controller.contexts() if context["gateway"] != gateway_id]

    router = APIRouter(prefix="/admin/v1", dependencies=[Depends(check)])

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return await controller.status()

    @router.get("/replicas")
    async def replicas() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await controller.status())["replicas"]
        return found

    @router.get("/contexts")
    async def contexts() -> list[dict[str, Any]]:
        return [{"gateway": gateway_id, **context} for context in pool.contexts()] + await of_others()

    @router.post("/replicas/{replica_id}/drain", status_code=202)
    async def drain(replica_id: str, body: DrainBody | None = None) -> dict[str, str]:
        deadline_s = None if body is None else body.deadline_s
        return _known(replica_id, await controller.drain(replica_id, deadline_s), "draining")

    @router.post("/replicas/{replica_id}/undrain", status_code=202)
    async def undrain(replica_id: str) -> dict[str, str]:
        return _known(replica_id, await controller.undrain(replica_id), "ready")

    @router.post("/contexts/{request_id}/move", status_code=202)
    async def move(request_id: str, body: MoveBody) -> dict[str, str]:
        wish = MoveWish(
            wish_id=uuid.uuid4().hex,
            request_id=request_id,
            destination=body.destination,
            carry_kv=body.mode == "kv",
        )
        _check_destination(body.destination, pool)
        own = [context for context in pool.contexts() if context["context"] == request_id]
        for context in own or [context for context in await of_others() if context["context"] == request_id]:
            _check_source(context, body.destination, pool)
        answer = await _moved_here(wish, pool)
        if answer is not HandOff.GONE:
            return {"context": request_id, "move": answer.value}
        if not await controller.pass_on(wish, gateway_id):
            raise HTTPException(404, f"no context {request_id} runs on an engine; GET /admin/v1/contexts lists them")
        return {"context": request_id, "move": "passed_on"}

    return router


def _check_destination(destination: str | None, pool: PoolClient) -> None:
    """Refuse a wish that the router could not grant; it would choose another replica."""
    if destination is None:
        return
    if pool.engines.get(destination) is None:
        raise _no_replica(destination)
    if destination not in [candidate.replica_id for candidate in decoding(pool.engines.candidates())]:
        state = "GET /admin/v1/replicas tells its role and state"
        raise HTTPException(409, f"replica {destination} takes no running contexts now; {state}")


def _check_source(context: dict[str, Any], destination: str | None, pool: PoolClient) -> None:
    """Refuse a wish that would bring the context back to where it is."""
    name, source = context["context"], context["replica"]
    if source is None:
        return
    if destination == source:
        raise HTTPException(409, f"context {name} is on {source} already; choose another destination, or none")
    if not elsewhere(source, pool.engines.candidates()):
        raise HTTPException(409, f"no other replica than {source} could go on with context {name} now")


async def _moved_here(wish: MoveWish, pool: PoolClient) -> HandOff:
    try:
        return await pool.move(
            wish.request_id, reason=MoveReason.REBALANCE, destination=wish.destination, carry_kv=wish.carry_kv
        )
    except (EngineLost, RuntimeError) as error:
        raise HTTPException(503, str(error)) from error


def _known(replica_id: str, known: bool, state: str) -> dict[str, str]:
    if not known:
        raise _no_replica(replica_id)
    return {"replica": replica_id, "state": state}


def _no_replica(replica_id: str) -> HTTPException:
    return HTTPException(404, f"no replica {replica_id}; GET /admin/v1/replicas lists them")
