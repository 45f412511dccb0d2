"""What one gateway's clients asked and got, and what crossed the wire meanwhile: the books that must agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder

from serving.contexts.context import request_id_of
from serving.contexts.mover import COPY_MARK
from serving.engine.messages import Kind, unpack
from serving.types import MoveReason
from tests.properties.memory_core import MemoryCore, sequence
from tests.properties.memory_wire import Message

MODES = ("kv", "replay")

Metric = Callable[..., float]


@dataclass(slots=True)
class Asked:
    """One request, and what its client has got."""

    expected: list[int]
    tokens: list[int] = field(default_factory=list)
    end: FinishReason | None = None
    aborted: bool = False

    @property
    def over(self) -> bool:
        return self.aborted or self.end is not None

    def take(self, output: EngineCoreOutput) -> None:
        """Every token once, in order, the same as without any move; nothing after the end."""
        assert not self.over, "an output after the end"
        assert output.kv_transfer_params is None, "clients must not see where KV lies"
        self.tokens += output.new_token_ids
        assert self.tokens == self.expected[: len(self.tokens)], "not the tokens of an undisturbed run"
        self.end = output.finish_reason
        assert self.end in (None, FinishReason.ERROR) or self.tokens == self.expected, "it ended too soon"


class Ledger:
    """Watches the wire. `exchange`: the cores that live, by NIXL's engine id."""

    def __init__(self, exchange: Mapping[str, MemoryCore]) -> None:
        self._exchange = exchange
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self.asked: dict[str, Asked] = {}
        self.unowed: set[str] = set()
        """Kept KV whose release was lost with an engine, or could not be sent: only the lease frees it."""
        self.harmed = False
        """An engine or a connection was harmed, so messages may have been lost."""
        self._legs_sent: dict[str, int] = defaultdict(int)
        self._tokens_arrived = self._handoffs_arrived = 0

    # ---- what the wire tells

    def sent(self, message: Message) -> None:
        kind, header, _ = unpack(list(message))
        if kind is Kind.ADD and not header.copies and not header.releases:
            self._legs_sent[request_id_of(header.leg_id)] += 1

    def arrived(self, message: Message) -> None:
        kind, _, payload = unpack(list(message))
        if kind is not Kind.STEP:
            return
        for output in self._decoder.decode(payload).outputs:
            if COPY_MARK not in output.request_id:
                self._tokens_arrived += len(output.new_token_ids)
                self._handoffs_arrived += output.kv_transfer_params is not None

    def lost(self, message: Message) -> None:
        """If it names kept KV, perhaps nobody else knows of that."""
        kind, header, _ = unpack(list(message))
        if kind is Kind.ADD and header.copies:
            return  # the client knows of the copy, and releases what was lent for it
        for core in self._exchange.values():
            self.unowed |= {name for name in core.kept if any(name.encode() in frame for frame in message)}

    def lost_with(self, core: MemoryCore) -> None:
        """What an engine had been told to pull or to release when it was lost; copies the client releases itself."""
        self.harmed = True
        told = [sequence(what) for what in (*core.refused, *(what for kind, what, _ in core.inbox if kind == "add"))]
        for one in (*told, *core.sequences()):
            if one.pull is not None and (one.request.abort_immediately or COPY_MARK not in one.leg_id):
                self.unowed.add(one.pull["remote_request_id"])

    # ---- the books at the end

    def check(self, metric: Metric) -> None:
        assert metric("generation_tokens_total") == sum(len(asked.tokens) for asked in self.asked.values())
        ends = {outcome: metric("requests_total", outcome=outcome) for outcome in ("stop", "length", "error")}
        got = [str(asked.end) for asked in self.asked.values()]
        assert ends == {outcome: got.count(outcome) for outcome in ends}
        assert metric("requests_total", outcome="abort") == got.count("None")
        self._check_moves(metric)

    def _check_moves(self, metric: Metric) -> None:
        """Each leg but a context's first follows one move; a context that ended early may have left once more."""
        counted = {
            mode: sum(metric("moves_total", reason=reason, mode=mode) for reason in MoveReason) for mode in MODES
        }
        least = sum(count - 1 for count in self._legs_sent.values())
        unplaced = sum(self.asked[name].end in (None, FinishReason.ERROR) for name in self._legs_sent)
        assert least <= sum(counted.values()) <= least + unplaced
        assert counted["kv"] <= self._handoffs_arrived
        dropped = self._tokens_arrived - metric("generation_tokens_total")
        assert metric("fenced_tokens_total") <= dropped
        if not self.harmed:
            assert metric("fenced_tokens_total") == dropped
            assert metric("moves_total", reason=MoveReason.ENGINE_LOST, mode="replay") == 0
