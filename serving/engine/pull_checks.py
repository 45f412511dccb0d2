"""What was pulled is what was lent: checked in a worker's own threads, before a request may run on it.

A pull that is through is held back until its verdict is there; meanwhile the engine's other requests go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from serving.engine.checksums import differing
from serving.engine.lent_sums import Sums

logger = logging.getLogger(__name__)

THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """A pull to be checked. `block_ids`: where its blocks go here. `num_tokens`: those that the blocks hold, the
    last one perhaps not full. `addresses`: where each worker of the source tells its sums, by rank."""

    remote_request_id: str
    addresses: tuple[str, ...]
    block_ids: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`bad_block_ids`: the blocks that must not be used. `answered`: False when nobody told what they should be."""

    bad_block_ids: frozenset[int]
    answered: bool = True


@dataclass(slots=True)
class _Check:
    pull: Pull
    theirs: Future[list[int] | None]
    verdict: Future[Verdict] | None = None


class PullChecks:
    """The checks of one worker, the one of that rank. `ask(address, name)`: the sums that the source tells, or None."""

    def __init__(self, sums: Sums, *, rank: int, blocks_per_id: int, ask: Callable[[str, str], list[int] | None]):
        self._sums, self._rank, self._blocks_per_id, self._ask = sums, rank, blocks_per_id, ask
        self._checks: dict[str, _Check] = {}
        # Two pools, so that comparisons cannot keep from asking what they wait for.
        self._asking = ThreadPoolExecutor(THREADS, thread_name_prefix="ferry-ask-sums")
        self._comparing = ThreadPoolExecutor(THREADS, thread_name_prefix="ferry-compare-sums")

    def begin(self, request_id: str, pull: Pull) -> None:
        """A pull begins: ask for its sums meanwhile."""
        theirs = self._asking.submit(self._ask, pull.addresses[self._rank], pull.remote_request_id)
        self._checks[request_id] = _Check(pull, theirs)

    def pulled(self, request_id: str) -> bool:
        """A pull is through: compare. False for one that nobody checks."""
        check = self._checks.get(request_id)
        if check is not None:
            check.verdict = self._comparing.submit(self._compare, check.pull, check.theirs)
        return check is not None

    def _compare(self, pull: Pull, asked: Future[list[int] | None]) -> Verdict:
        ours, theirs = self._sums(list(pull.block_ids), pull.num_tokens), asked.result()
        if theirs is None:
            return Verdict(bad_block_ids=frozenset(pull.block_ids), answered=False)
        bad = differing(ours, theirs)
        return Verdict(bad_block_ids=frozenset(pull.block_ids[n // self._blocks_per_id] for n in bad))

    def drop(self, request_id: str) -> None:
        """The pull failed: there is nothing to check."""
        self._checks.pop(request_id, None)

    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts since the last call, by request."""
        found = {
            request_id: check.verdict.result()
            for request_id, check in self._checks.items()
            if check.verdict is not None and check.verdict.done()
        }
        for request_id, verdict in found.items():
            pull = self._checks.pop(request_id).pull
            if verdict.bad_block_ids:
                why = "differ from those lent" if verdict.answered else "cannot be checked: no answer"
                count = len(verdict.bad_block_ids)
                logger.error("%d of %d blocks of %s %s", count, len(pull.block_ids), pull.remote_request_id, why)
        return found

    def close(self) -> None:
        for threads in (self._asking, self._comparing):
            threads.shutdown(wait=False, cancel_futures=True)
