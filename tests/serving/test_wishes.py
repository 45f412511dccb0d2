"""Wishes in cluster views: each is granted once, by whoever owns the context, and none disturbs another."""

from __future__ import annotations

import asyncio

import pytest

from serving.engine.messages import HandOff
from serving.errors import EngineLost
from serving.gateway.wishes import Wishes
from serving.types import ClusterView, MoveReason, MoveWish
from tests.fakes import settle

Moved = tuple[str, str | None, bool]


class Pool:
    """A pool client that owns some contexts. Its engines answer when `answering` is set."""

    def __init__(self, *owned: str, error: Exception | None = None) -> None:
        self.owned, self.error = owned, error
        self.asked: list[str] = []
        self.moved: list[Moved] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def move(
        self, request_id: str, *, reason: MoveReason, destination: str | None = None, carry_kv: bool = True
    ) -> HandOff:
        assert reason is MoveReason.REBALANCE
        self.asked.append(request_id)
        if request_id not in self.owned:
            return HandOff.GONE
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        self.moved.append((request_id, destination, carry_kv))
        return HandOff.AT_NEXT_TOKEN


def wish(wish_id: str, request_id: str = "r", **fields: object) -> MoveWish:
    return MoveWish(wish_id=wish_id, request_id=request_id, **fields)  # type: ignore[arg-type]


def view(*wishes: MoveWish, version: int = 1) -> ClusterView:
    return ClusterView(version=version, wishes=wishes)


async def test_a_wish_is_granted_once_however_often_it_is_seen() -> None:
    pool = Pool("r")
    wishes = Wishes(pool)
    first, second = wish("1", destination="d2"), wish("2", carry_kv=False)
    for seen in (view(first), view(first), view(first, second), view(second), view(second)):
        wishes.follow(seen)
        await settle(2)
    assert pool.moved == [("r", "d2", True), ("r", None, False)]
    wishes.close()


async def test_a_wish_for_somebody_elses_context_moves_nothing() -> None:
    pool = Pool("mine")
    wishes = Wishes(pool)
    wishes.follow(view(wish("1", "theirs"), wish("2", "mine")))
    await settle(2)
    assert pool.asked == ["theirs", "mine"] and pool.moved == [("mine", None, True)]
    wishes.close()


async def test_an_engine_that_takes_its_time_delays_no_view() -> None:
    pool = Pool("r", "s")
    pool.answering.clear()
    wishes = Wishes(pool)
    wishes.follow(view(wish("1", "r")))
    wishes.follow(view(wish("1", "r"), wish("2", "s")))
    await settle(2)
    assert pool.asked == ["r", "s"] and pool.moved == []
    pool.answering.set()
    await settle(2)
    assert {request_id for request_id, _, _ in pool.moved} == {"r", "s"}
    wishes.close()


@pytest.mark.parametrize("error", [EngineLost("it went away"), RuntimeError("its core says no")])
async def test_a_wish_that_fails_is_said_and_forgotten(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool("r", error=error)
    wishes = Wishes(pool)
    with caplog.at_level("WARNING", logger="ray.serve"):
        wishes.follow(view(wish("1")))
        await settle(2)
    assert str(error) in caplog.text
    pool.error = None
    wishes.follow(view(wish("1"), wish("2")))
    await settle(2)
    assert len(pool.moved) == 1, "the second wish alone is granted"
    wishes.close()


async def test_closing_ends_what_waits() -> None:
    pool = Pool("r")
    pool.answering.clear()
    wishes = Wishes(pool)
    wishes.follow(view(wish("1")))
    await settle(2)
    wishes.close()
    pool.answering.set()
    await settle(2)
    assert pool.asked == ["r"] and pool.moved == []
