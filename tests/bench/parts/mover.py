"""The process that moves streams: a `PoolClient` over real engines, and the instant at which each token came out of it.

Nothing of vLLM's front end runs here, so the stamps show what Ferry and the engines do. All streams of a cell sit on
one engine and move to the other and back, at random tokens and random instants of a step. Before each move the
destination's prefix cache is emptied: it may not know a context from its last stay.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection

from parts.children import BenchFailed, answer_all
from parts.moves import CellJob, Found, Mode
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from serving.clock import SystemClock
from serving.contexts.move_log import MoveLog, MoveRecord, wanted_log
from serving.contexts.pool_client import PoolClient
from serving.engine.channel import ChannelKeys
from serving.engine.messages import HandOff
from serving.metrics import GatewayMetrics
from serving.types import ClusterView, MoveReason, Replica, ReplicaState

WORDS = range(1_000, 40_000)  # token ids of ordinary text in every vocabulary that we know
LONGER = 4
STEPS_BETWEEN, SETTLE_STEPS, RESERVED_TOKENS = (6, 14), 2, 20
PREFILL_TIMEOUT_S, STEP_TIMEOUT_S, MOVE_TIMEOUT_S, END_TIMEOUT_S, RELEASE_TIMEOUT_S = 300.0, 60.0, 300.0, 900.0, 15.0
ROUND_MARGIN = 1.5
"""A round starts when every stream has so many times the tokens left that the longest round before it took."""
POLL_S = 0.02
UNDER_WAY = (HandOff.AT_NEXT_TOKEN, HandOff.NO_KV)


@dataclass(slots=True)
class Stream:
    """One request and the instants of its tokens, on `time.perf_counter`."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    stamps_s: list[float] = field(default_factory=list)
    log: MoveLog = field(default_factory=MoveLog)
    """What Ferry says of its moves: from outside, tokens of two legs look alike."""
    finish: FinishReason | None = None

    @property
    def left_tokens(self) -> int:
        return self.output_tokens - len(self.stamps_s)

    def take(self, output: EngineCoreOutput, now_s: float) -> None:
        self.stamps_s += [now_s] * len(output.new_token_ids)
        self.finish = output.finish_reason

    def moves_since(self, count: int) -> list[MoveRecord]:
        """The moves after the first `count`, once their next token is here."""
        return [move for move in self.log.completed[count:] if len(self.stamps_s) > move.at_token]

    def steps_s(self, since_s: float, until_s: float) -> list[float]:
        """Times between tokens that both came within that while."""
        inside = [stamp_s for stamp_s in self.stamps_s if since_s <= stamp_s <= until_s]
        return [after - before for before, after in itertools.pairwise(inside)]


class Mover:
    """Two engines and the streams on them."""

    def __init__(self, keys: ChannelKeys, replicas: tuple[Replica, Replica]):
        self._registry = CollectorRegistry()
        self._replicas, self._versions = replicas, itertools.count(1)
        self._streams: dict[str, Stream] = {}
        self._changed = asyncio.Event()
        self._client = PoolClient(
            keys=keys,
            clock=SystemClock(),
            metrics=GatewayMetrics(self._registry, model_name="m", gateway="bench"),
            disaggregate_from_tokens=1,
            engine_wait_s=30.0,
        )
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Link to the engines and let them shake hands.

        Raises:
            BenchFailed: when they cannot.
        """
        await self._client.follow(self._view())
        self._reader = asyncio.create_task(self._read())
        for engine in self._client.engines.all():
            peers = [asdict(e.replica.info.kv) for e in self._client.engines.all() if e is not engine]
            if None in await engine.link.call("warm_peers", peers, timeout_s=120.0):
                raise BenchFailed(f"{engine.replica.replica_id} cannot reach its peer")

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        await self._client.close()

    async def cell(self, job: CellJob) -> Found:
        """All moves of one cell.

        Raises:
            BenchFailed: on a lost token, a lost engine, or a block that nobody freed.
        """
        found, before, bytes_before = Found(), self._counted(job.mode), self._sample("ferry:move_bytes_total")
        rng, output_tokens = random.Random(job.seed), job.first_tokens
        most = min(replica.info.max_model_len for replica in self._replicas) - job.context_tokens
        while len(found.gap_s) + found.fell_back < job.moves:
            if not await self._batch(job, found, rng, output_tokens):
                if output_tokens == most:
                    raise BenchFailed(f"a stream of {output_tokens} tokens ended before its move did")
                output_tokens = min(most, output_tokens * LONGER)
        await self._check_released()
        if not found.gap_s:
            raise BenchFailed(f"no move went as wished: {found.fell_back} fell back to another way")
        counted = self._counted(job.mode) - before
        if counted != len(found.gap_s) + found.left_out and not found.fell_back:
            raise BenchFailed(f"Ferry counts {counted:.0f} moves, here {len(found.gap_s)} were seen")
        found.moved_bytes = self._sample("ferry:move_bytes_total") - bytes_before
        return found

    async def _batch(self, job: CellJob, found: Found, rng: random.Random, output_tokens: int) -> bool:
        """One set of streams from their start to their end; False when one ended before its move did."""
        prompt_tokens = max(job.context_tokens - output_tokens // 2, job.context_tokens // 2)
        source, destination = self._replicas
        streams = await self._start(source, job.streams, prompt_tokens, output_tokens, rng)
        all_moved = together = True
        round_tokens = 0
        while all_moved and together and len(found.gap_s) + found.fell_back < job.moves:
            await self._steps(streams, SETTLE_STEPS)
            quiet_from_s = time.perf_counter()
            await self._steps(streams, rng.randint(*STEPS_BETWEEN))
            quiet_until_s = time.perf_counter()
            step_s = [step_s for stream in streams for step_s in stream.steps_s(quiet_from_s, quiet_until_s)]
            found.step_s += step_s
            left_tokens = [stream.left_tokens for stream in streams]
            if min(left_tokens) < RESERVED_TOKENS + ROUND_MARGIN * round_tokens:
                break
            await self._empty(destination)
            await asyncio.sleep(rng.uniform(0, max(step_s, default=0.0)))
            all_moved = await self._move(streams, destination, job.mode, found)
            together = self._all_on(destination)
            used_tokens = (before - s.left_tokens for before, s in zip(left_tokens, streams, strict=True))
            round_tokens = max(round_tokens, *used_tokens)
            source, destination = destination, source
        await self._until(lambda: all(s.finish is not None for s in streams), END_TIMEOUT_S, "the streams' ends")
        for stream in streams:
            self._check(stream)
            del self._streams[stream.request_id]
        return all_moved

    async def _start(
        self, source: Replica, count: int, prompt_tokens: int, output_tokens: int, rng: random.Random
    ) -> list[Stream]:
        """New streams, all on one engine and all decoding."""
        await self._empty(source)
        await self._client.follow(self._view(only=source))
        streams = []
        for _ in range(count):
            request = _request(f"move-{rng.getrandbits(64):x}", prompt_tokens, output_tokens, rng)
            stream = self._streams[request.request_id] = Stream(request.request_id, prompt_tokens, output_tokens)
            streams.append(stream)
            wanted_log.set(stream.log)
            await self._client.add_request_async(request)
        await self._until(lambda: all(s.stamps_s for s in streams), PREFILL_TIMEOUT_S, "the first tokens")
        await self._client.follow(self._view())
        return streams

    async def _move(self, streams: Sequence[Stream], destination: Replica, mode: Mode, found: Found) -> bool:
        """Move all at once and note what it did; False when a stream ended first."""
        wished_s = time.perf_counter()
        before = {stream.request_id: len(stream.log.completed) for stream in streams}

        def moves(stream: Stream) -> list[MoveRecord]:
            return stream.moves_since(before[stream.request_id])

        wishes = (
            self._client.move(
                s.request_id, reason=MoveReason.REBALANCE, destination=destination.replica_id, **mode.wish
            )
            for s in streams
        )
        answers = await asyncio.gather(*wishes)
        going = [stream for stream, answer in zip(streams, answers, strict=True) if answer in UNDER_WAY]
        await self._until(
            lambda: all(moves(s) or s.finish is not None for s in going), MOVE_TIMEOUT_S, "the moves' ends"
        )
        moved = [stream for stream in going if moves(stream)]
        if len(moved) < len(streams):
            found.left_out += len(moved)
            return False
        for stream in moved:
            _note(found, stream, moves(stream), mode, wished_s)
        found.rounds += 1
        return True

    def _all_on(self, replica: Replica) -> bool:
        return all(context["replica"] == replica.replica_id for context in self._client.contexts())

    def _check(self, stream: Stream) -> None:
        if stream.finish is not FinishReason.LENGTH or stream.left_tokens != 0:
            raise BenchFailed(
                f"{stream.request_id}: {len(stream.stamps_s)} tokens of {stream.output_tokens}, end: {stream.finish}"
            )

    async def _check_released(self) -> None:
        """Every engine is empty: no request, no block in use, none kept for a pull."""
        for replica in self._replicas:
            await self._empty(replica)
        deadline_s = time.perf_counter() + RELEASE_TIMEOUT_S
        while loads := [e.link.load for e in self._client.engines.all() if e.link.load.running or e.link.load.kv_usage]:
            if time.perf_counter() > deadline_s:
                raise BenchFailed(f"engines still hold something: {loads}")
            await asyncio.sleep(POLL_S)

    async def _empty(self, replica: Replica) -> None:
        """Empty a prefix cache. vLLM does it only when no block is in use: the last pull must have been confirmed."""
        deadline_s = time.perf_counter() + RELEASE_TIMEOUT_S
        while not await self._client.engines[replica.replica_id].link.call("reset_prefix_cache", False, False):
            if time.perf_counter() > deadline_s:
                raise BenchFailed(f"{replica.replica_id} still keeps blocks after {RELEASE_TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_S)

    async def _steps(self, streams: Sequence[Stream], count: int) -> None:
        """Wait until every stream has `count` more tokens, or ended."""
        wanted = [(stream, len(stream.stamps_s) + count) for stream in streams]
        await self._until(
            lambda: all(len(stream.stamps_s) >= n or stream.finish is not None for stream, n in wanted),
            STEP_TIMEOUT_S,
            "the next tokens",
        )

    async def _until(self, true: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.perf_counter() + timeout_s
        while not true():
            if self._reader is not None and self._reader.done():
                await self._reader
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline_s - time.perf_counter())
            except TimeoutError:
                raise BenchFailed(f"waited {timeout_s:.0f} s for {what}: {list(self._streams.values())}") from None

    async def _read(self) -> None:
        try:
            while True:
                outputs = await self._client.get_output_async()
                now_s = time.perf_counter()
                for output in outputs.outputs:
                    self._streams[output.request_id].take(output, now_s)
                self._changed.set()
        finally:
            self._changed.set()

    def _counted(self, mode: Mode) -> float:
        return self._sample("ferry:moves_total", mode=mode.counted_as)

    def _sample(self, name: str, **labels: str) -> float:
        samples = (sample for family in self._registry.collect() for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def _view(self, only: Replica | None = None) -> ClusterView:
        """Both engines; only one of them takes new streams when `only` says so."""
        replicas = (replace(r, state=ReplicaState.STARTING) if only not in (None, r) else r for r in self._replicas)
        return ClusterView(version=next(self._versions), replicas=tuple(replicas))


def _note(found: Found, stream: Stream, moves: Sequence[MoveRecord], mode: Mode, wished_s: float) -> None:
    """What became of one wish. It may take two moves, where one fails and its replay comes after it."""
    if [move.mode for move in moves] != [mode.counted_as]:
        found.fell_back += 1
        return
    at = moves[0].at_token
    last_before_s, first_after_s = stream.stamps_s[at - 1], stream.stamps_s[at]
    found.gap_s.append(first_after_s - last_before_s)
    found.whole_s.append(first_after_s - wished_s)
    found.moving_step_s += stream.steps_s(wished_s, last_before_s)
    found.context_tokens.append(stream.prompt_tokens + at)


def _request(request_id: str, prompt_tokens: int, output_tokens: int, rng: random.Random) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=rng.choices(WORDS, k=prompt_tokens),
        mm_features=None,
        sampling_params=SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


async def serve(conn: Connection, keys: ChannelKeys, replicas: tuple[Replica, Replica]) -> None:
    """CellJob → Found, until the asker closes the pipe."""
    mover = Mover(keys, replicas)
    try:
        await mover.open()
        conn.send("ready")
        await answer_all(conn, mover.cell)
    finally:
        await mover.close()
