"""vLLM v1's scheduler spelt out, one step and one sequence at a time: what the simulator's jumps must agree with.

It keeps each sequence's blocks and tokens by itself and knows no formula. It shares the simplifications that
`planner.simulate.engine` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.queueing import EngineRules, StepCosts
from planner.simulate import Requests


@dataclass(eq=False)
class Sequence:
    request: int
    tokens: int  # known: prompt and output
    computed: int
    cached: int
    output_tokens: int
    emitted: int = 0
    blocks: int = 0
    decoding: bool = False


@dataclass
class Naive:
    """Runs all requests on one engine; then `first_token_s`, `finish_s`, `preemptions` and `peak_blocks` hold."""

    costs: StepCosts
    rules: EngineRules
    requests: Requests
    running: list[Sequence] = field(default_factory=list)
    waiting: list[Sequence] = field(default_factory=list)
    first_token_s: dict[int, float] = field(default_factory=dict)
    finish_s: dict[int, float] = field(default_factory=dict)
    preemptions: int = 0
    peak_blocks: int = 0
    now_s: float = 0.0
    horizon_s: float = 0.0

    def run(self) -> Naive:
        requests, self.lag = self.requests, self.rules.lag_steps
        self.block, self.free = int(self.rules.block_size_tokens), int(self.rules.kv_blocks)
        rows = zip(requests.prompt_tokens, requests.cached_tokens, requests.output_tokens, strict=True)
        self.waiting = [
            Sequence(request=i, tokens=int(p), computed=int(c), cached=int(c), output_tokens=int(o))
            for i, (p, c, o) in enumerate(rows)
        ]
        while self.running or self.waiting:
            if not self.running:
                arrival_s = float(requests.arrival_s[self.waiting[0].request])
                self.now_s = self.horizon_s = max(self.now_s, arrival_s)
            self.step()
        return self

    def step(self) -> None:
        budget, chunks = int(self.rules.max_num_batched_tokens), []
        before = list(self.running)
        for sequence in before:
            if sequence not in self.running:
                continue
            new = min(sequence.tokens - sequence.computed, budget)
            while not self.allocate(sequence, sequence.computed + new):
                self.preempt(self.running.pop())
                if sequence not in self.running:
                    break
            if sequence in self.running:
                chunks.append((sequence, new))
                budget -= new
        if [s for s in before if s in self.running] == before:
            budget = self.admit(budget, chunks)
        self.compute(chunks)

    def admit(self, budget: int, chunks: list[tuple[Sequence, int]]) -> int:
        while self.waiting and budget and len(self.running) < int(self.rules.max_num_seqs):
            sequence = self.waiting[0]
            if self.requests.arrival_s[sequence.request] > self.horizon_s:
                break
            if not self.allocate(sequence, sequence.tokens):
                break
            self.running.append(self.waiting.pop(0))
            new = min(sequence.tokens - sequence.computed, budget)
            chunks.append((sequence, new))
            budget -= new
        return budget

    def allocate(self, sequence: Sequence, tokens: int) -> bool:
        more = max(0, -(-tokens // self.block) - sequence.blocks)
        if more > self.free:
            return False
        self.free -= more
        sequence.blocks += more
        return True

    def preempt(self, sequence: Sequence) -> None:
        self.free += sequence.blocks
        sequence.blocks, sequence.decoding = 0, False
        if sequence.emitted >= sequence.output_tokens:
            return  # it had ended, and only kept its place
        sequence.computed = min(sequence.cached, sequence.tokens - 1)
        self.waiting.insert(0, sequence)
        self.preemptions += 1

    def compute(self, chunks: list[tuple[Sequence, int]]) -> None:
        costs, start_s = self.costs, self.now_s
        took_s = costs.step_s
        for sequence, new in chunks:
            end = sequence.computed + new
            took_s += costs.sequence_s
            if sequence.decoding:
                took_s += costs.kv_token_s * end
            else:
                took_s += costs.prefill_token_s * new + costs.prefill_square_s * (end**2 - sequence.computed**2)
        self.peak_blocks = max(self.peak_blocks, int(self.rules.kv_blocks) - self.free)
        self.now_s += took_s
        self.horizon_s = start_s if self.lag else self.now_s
        for sequence, new in chunks:
            sequence.computed += new
            if sequence.computed == sequence.tokens:
                self.emit(sequence)

    def emit(self, sequence: Sequence) -> None:
        sequence.emitted += 1
        sequence.tokens += 1
        self.first_token_s.setdefault(sequence.request, self.now_s)
        if sequence.emitted == sequence.output_tokens:
            self.finish_s[sequence.request] = self.now_s
        kept_steps = self.lag if sequence.decoding else 0
        sequence.decoding = True
        if sequence.emitted == sequence.output_tokens + kept_steps:
            self.running.remove(sequence)
            self.free += sequence.blocks
