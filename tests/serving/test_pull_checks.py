"""Pulls against what was lent: over real sockets and threads, on tensors instead of engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import zmq
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.engine.checked_transfers import OFFER, offer, pull_of
from serving.engine.checksums import BlockSums
from serving.engine.lent_sums import Lender, LentSums, ask
from serving.engine.pull_checks import Pull, PullChecks, Verdict
from serving.engine.transfer_stats import TransferMetrics, TransferStats

BLOCK_SIZE, BLOCKS = 32, 10
SOURCE_BLOCKS, NUM_TOKENS = [5, 2, 3, 7], 3 * BLOCK_SIZE + 9
HERE = [1, 4, 0, 8]
WAIT_S = 5.0


class Ends:
    """A source that lent blocks, and a destination that pulled them, of two layers."""

    def __init__(self, *, silent_after_s: float = WAIT_S) -> None:
        draw = torch.Generator().manual_seed(1)
        self.source = [torch.randn((BLOCKS, 2, BLOCK_SIZE, 8), generator=draw) for _ in range(2)]
        self.here = [torch.zeros_like(layer) for layer in self.source]
        for layer, other in zip(self.source, self.here, strict=True):
            other[HERE] = layer[SOURCE_BLOCKS]
        self.lent = LentSums(BlockSums(self.source).of, "127.0.0.1")
        self.lender = Lender([self.lent.address])
        answer = partial(ask, timeout_s=silent_after_s)
        self.checks = PullChecks(BlockSums(self.here).of, rank=0, blocks_per_id=1, ask=answer)

    def begin(self, name: str, *, cached: int = 0, block_size_tokens: int = BLOCK_SIZE) -> None:
        """A pull of all lent blocks but the first ones, which the prefix cache has."""
        params: dict[str, Any] = {
            "remote_request_id": name,
            "remote_block_ids": [SOURCE_BLOCKS],
            "remote_num_tokens": NUM_TOKENS,
            OFFER: offer(self.lender.addresses, BLOCK_SIZE),
        }
        pull = pull_of(params, HERE[cached:], block_size_tokens)
        assert pull is not None
        self.checks.begin(f"{name}-here", pull)

    def verdict(self, name: str) -> Verdict:
        assert self.checks.pulled(f"{name}-here")
        deadline_s = time.monotonic() + WAIT_S
        while not (found := self.checks.verdicts()):
            assert time.monotonic() < deadline_s, "no verdict"
            time.sleep(0.002)
        assert list(found) == [f"{name}-here"] and self.checks.verdicts() == {}, "each verdict once"
        return found[f"{name}-here"]

    def close(self) -> None:
        self.checks.close()
        self.lender.close()
        self.lent.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(silent_after_s=1.0)
    yield ends
    ends.close()


@pytest.mark.parametrize("cached", [0, 1, 3])
def test_what_came_whole_is_good(ends: Ends, cached: int) -> None:
    ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
    ends.begin("r", cached=cached)
    assert ends.verdict("r") == Verdict(bad_block_ids=frozenset())


@pytest.mark.parametrize("cached", [0, 2])
def test_a_flipped_byte_names_its_block(ends: Ends, cached: int) -> None:
    ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
    ends.begin("r", cached=cached)
    ends.here[1].view(torch.uint8)[HERE[3], 1, 8, 5] ^= 64
    assert ends.verdict("r") == Verdict(bad_block_ids=frozenset([HERE[3]]))


def test_behind_the_last_token_the_source_may_write_on(ends: Ends) -> None:
    ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
    ends.begin("r")
    ends.here[0][HERE[3], :, 9:] = 3.0
    assert ends.verdict("r").bad_block_ids == frozenset()


def test_blocks_that_were_given_to_others_meanwhile_are_bad(ends: Ends) -> None:
    ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
    assert ask(ends.lent.address, "r", 1.0) is not None
    ends.source[0][SOURCE_BLOCKS[1]] = 1.0
    ends.here[0][HERE[1]] = 1.0  # pulled after that
    ends.begin("r")
    assert ends.verdict("r").bad_block_ids == frozenset([HERE[1]])


def test_one_may_ask_before_the_blocks_are_lent(ends: Ends) -> None:
    ends.begin("r")
    time.sleep(0.1)
    ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
    assert ends.verdict("r") == Verdict(bad_block_ids=frozenset())


def test_without_an_answer_nothing_is_used() -> None:
    ends = Ends(silent_after_s=0.2)
    try:
        ends.begin("never-lent", cached=1)
        assert ends.verdict("never-lent") == Verdict(bad_block_ids=frozenset(HERE[1:]), answered=False)
    finally:
        ends.close()


def test_others_do_not_wait_for_one_that_does_not_answer() -> None:
    ends = Ends(silent_after_s=WAIT_S)
    try:
        ends.begin("never-lent")
        ends.checks.pulled("never-lent-here")
        ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
        ends.begin("r")
        started_s = time.monotonic()
        assert ends.verdict("r").answered and time.monotonic() - started_s < WAIT_S / 2
        ends.checks.drop("never-lent-here")
    finally:
        ends.close()


def test_a_pull_that_nobody_checks_is_through_at_once(ends: Ends) -> None:
    ends.begin("failed")
    ends.checks.drop("failed-here")
    assert not ends.checks.pulled("failed-here") and not ends.checks.pulled("unknown")
    assert ends.checks.verdicts() == {}


def test_strange_messages_change_nothing(ends: Ends) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(ends.lent.address)
        for frames in ([b""], [b"\xc1", b"\xff"], [b"x" * 1000]):
            socket.send_multipart(frames)
        ends.lender.lend("gone", [BLOCKS + 3], 5)
        ends.lender.lend("r", SOURCE_BLOCKS, NUM_TOKENS)
        ends.begin("r")
        assert ends.verdict("r").answered


def test_blocks_of_another_size_or_without_sums_are_not_checked() -> None:
    params = {"remote_request_id": "r", "remote_block_ids": [[1, 2]], "remote_num_tokens": 40}
    assert pull_of(params, [3, 4], 32) is None
    offered = params | {OFFER: offer(["tcp://x:1"], 32)}
    assert pull_of(offered, [3, 4], 16) is None
    assert pull_of(offered, [4], 32) == Pull(
        remote_request_id="r", addresses=("tcp://x:1",), block_ids=(4,), num_tokens=8
    )


def test_failures_reach_the_metrics() -> None:
    registry = CollectorRegistry()
    kinds: dict[Any, Any] = {kind: partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)}

    class Config:
        kv_transfer_config = None

    config: Any = Config()
    metrics = TransferMetrics(config, kinds, ["model_name", "engine"], {0: ["m", "0"]})
    stats, more = TransferStats(), TransferStats()
    assert stats.is_empty()
    stats.record_verdict(Verdict(bad_block_ids=frozenset()))
    assert stats.is_empty()
    stats.record_verdict(Verdict(bad_block_ids=frozenset([1, 2])))
    more.record_verdict(Verdict(bad_block_ids=frozenset([3]), answered=False))
    told = stats.clone_and_reset().aggregate(more)
    assert stats.is_empty() and not told.is_empty()
    metrics.observe(told.to_dict())
    labels = {"model_name": "m", "engine": "0"}
    assert registry.get_sample_value("ferry:kv_checksum_failures_total", labels) == 1
    assert registry.get_sample_value("ferry:kv_checksums_unanswered_total", labels) == 1
    assert registry.get_sample_value("vllm:nixl_num_failed_transfers_total", labels) == 0
