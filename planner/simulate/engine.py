"""One simulated engine, with the rules of vLLM v1's scheduler.

Each step: every decoding sequence gets one token; a prompt already begun gets the rest of the token budget; then
waiting requests are admitted in order while budget, max_num_seqs and KV blocks last. When the blocks do not suffice
for the decoding sequences, the one admitted last goes back to the head of the queue and is computed again.

Time does not tick. A run of steps that only decode is one jump, to the next end, to the arrival that the caller
names or to the point where blocks run out: step times in it are an arithmetic series. No step looks at each sequence:
contexts all grow by one, so their sum is a number, and sequences that need a block in the same step are counted
together, by the step's remainder.

Where it is simpler than vLLM: a prompt takes all of its blocks when admitted; blocks found in the prefix cache count
as its own; with async scheduling an ended sequence keeps its place for one more step, as after an end-of-sequence
token (one known to reach its limit would not be computed in it).
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heapify, heappop, heappush

from planner.queueing.costs import EngineRules, StepCosts
from planner.simulate.ledger import Ledger

FOREVER = math.inf


class Engine:
    """Advance it to a time, give it requests, advance it on. `now_s` is the start of its next step.

    Several engines may share one `waiting` queue.
    """

    __slots__ = (
        "_base_s",
        "_block",
        "_blocked",
        "_cap",
        "_due",
        "_horizon_s",
        "_kv_s",
        "_lag",
        "_ledger",
        "_offset",
        "_partial",
        "_partial_done",
        "_phases",
        "_prefill_only",
        "_running",
        "_sequence_s",
        "_square_s",
        "_steps",
        "_token_s",
        "batch",
        "budget",
        "busy_s",
        "finished",
        "free_blocks",
        "least_free_blocks",
        "now_s",
        "preemptions",
        "queued_tokens",
        "sequence_seconds",
        "total_blocks",
        "waiting",
    )

    def __init__(
        self,
        costs: StepCosts,
        rules: EngineRules,
        ledger: Ledger,
        *,
        prefill_only: bool = False,
        waiting: deque[int] | None = None,
    ) -> None:
        self._base_s, self._token_s = float(costs.step_s), float(costs.prefill_token_s)
        self._sequence_s, self._kv_s = float(costs.sequence_s), float(costs.kv_token_s)
        self._square_s = float(costs.prefill_square_s)
        self.budget, self._cap = int(rules.max_num_batched_tokens), int(rules.max_num_seqs)
        self._block, self.total_blocks = int(rules.block_size_tokens), int(rules.kv_blocks)
        self._lag = rules.lag_steps
        self._ledger, self._prefill_only = ledger, prefill_only
        self.waiting: deque[int] = deque() if waiting is None else waiting
        self.finished: list[int] = []  # the caller empties it
        self.now_s = self._horizon_s = 0.0  # arrivals up to the horizon are in the next step
        self._steps = 0
        self.batch = self._offset = 0  # contexts add up to _offset + batch x _steps
        self._phases = [0] * self._block  # [r]: sequences that need a block in steps s with s % block == r
        self._due: list[tuple[int, int]] = []  # heap of (last step in the batch, request)
        self._running: dict[int, None] = {}  # in order of admission
        self._partial, self._partial_done = -1, 0  # the one prompt that is part computed
        self.free_blocks = self.least_free_blocks = self.total_blocks
        self._blocked = -1  # the request at the head of the queue that cannot be admitted before something ends here
        self.queued_tokens = 0  # prompt tokens given to this engine and not computed yet
        self.preemptions = 0
        self.busy_s = self.sequence_seconds = 0.0

    @property
    def outstanding(self) -> int:
        """Requests running here or waiting."""
        return len(self._running) + len(self.waiting)

    @property
    def next_event(self) -> tuple[float, bool]:
        """(time before which no request ends here, whatever arrives; whether a step starts then).

        Without a start it is an end, exactly: the engine only decodes, and has the blocks for it. At equal times
        ends sort before starts, which may compute what the ends bring about.
        """
        if not self._running:
            if not self.waiting:
                return FOREVER, True
            return max(self.now_s, self._ledger.arrival_s[self.waiting[0]]), True
        if self._partial >= 0 or (self.waiting and self.waiting[0] != self._blocked):
            return self.now_s, True
        ends = self._due[0][0] - self._steps
        steps = ends if self.batch * (ends // self._block + 1) <= self.free_blocks else self._steps_that_fit(ends)
        first_s = self._bare_step_s(self._steps + 1)
        return self.now_s + steps * (first_s + self._kv_s * self.batch * (steps - 1) / 2), steps < ends

    def give(self, request: int) -> None:
        """The request joins the queue; its arrival, in the ledger, must not be after the next `advance`."""
        self.waiting.append(request)
        self.queued_tokens += self._ledger.goal_tokens[request] - self._ledger.done_tokens[request]

    def advance(self, until_s: float) -> None:
        """Run every step that starts before `until_s`."""
        while self.now_s < until_s and (self._running or self.waiting):
            if not self.step(until_s):
                return

    def step(self, until_s: float) -> bool:
        """One step, or one run of steps that only decode and start before `until_s`; False if there was nothing."""
        if self._partial < 0 and not self.waiting:
            if not self._running:
                return False
            self._decode(until_s, self._due[0][0] - self._steps)
            return True
        if not self._running:
            arrival_s = self._ledger.arrival_s[self.waiting[0]]
            if arrival_s >= until_s:
                return False
            self.now_s = self._horizon_s = max(self.now_s, arrival_s)
        self._mixed(until_s)
        return True

    def _bare_step_s(self, step: int) -> float:
        batch = self.batch
        return self._base_s + self._sequence_s * batch + self._kv_s * (self._offset + batch * step)

    def _decode(self, until_s: float, steps: int) -> None:
        """At most `steps` steps without prefill."""
        batch, block, done = self.batch, self._block, self._steps
        first_s = self._base_s + self._sequence_s * batch + self._kv_s * (self._offset + batch * (done + 1))
        half_s = self._kv_s * batch / 2  # a step is longer than the one before by twice this
        line_s = first_s - half_s
        gap_s = until_s - self.now_s
        if steps * (line_s + half_s * steps) > gap_s:
            root = 2 * gap_s / (line_s + math.sqrt(line_s * line_s + 4 * half_s * gap_s))
            steps = min(steps, max(1, math.ceil(root - 1e-9)))
        if batch * (steps // block + 1) > self.free_blocks:
            steps = self._steps_that_fit(steps)
            if not steps:
                self._make_room(done + 1)
                return
        self.free_blocks -= self._growth(steps)
        took_s = steps * (line_s + half_s * steps)
        self.now_s += took_s
        self._horizon_s = self.now_s if not self._lag else self.now_s - first_s - 2 * half_s * (steps - 1)
        self._account(took_s)
        self._steps = done + steps
        if self._due[0][0] == self._steps:
            self._end_due()

    def _growth(self, steps: int) -> int:
        """Blocks that the next `steps` steps take."""
        whole, rest = divmod(steps, self._block)
        blocks = whole * self.batch
        if rest:
            start = (self._steps + 1) % self._block
            end = start + rest
            blocks += sum(self._phases[start:end])
            if end > self._block:
                blocks += sum(self._phases[: end - self._block])
        return blocks

    def _steps_that_fit(self, most: int) -> int:
        """How many of the next steps the free blocks carry."""
        whole = self.free_blocks // self.batch
        steps = whole * self._block
        left = self.free_blocks - whole * self.batch
        while steps < most:
            left -= self._phases[(self._steps + 1 + steps) % self._block]
            if left < 0:
                break
            steps += 1
        return min(steps, most)

    def _mixed(self, until_s: float) -> None:
        """A step in which prompts may be computed; if none can be, a run of decode steps."""
        step = self._steps + 1
        if self._phases[step % self._block] > self.free_blocks:
            self._make_room(step)
            if self._running:
                self._compute(*self._continue_partial(), step)
            return
        tokens, square, ends = self._continue_partial()
        if tokens < self.budget - self.batch:
            tokens, square = self._admit(tokens, square, ends)
        if tokens:
            self._compute(tokens, square, ends, step)
        elif self.waiting and self._ledger.arrival_s[self.waiting[0]] > self._horizon_s:
            self._decode(until_s, 1)  # whoever came after the horizon is seen one step on
        else:
            self._blocked = self.waiting[0] if self.waiting else -1
            self._decode(until_s, self._due[0][0] - self._steps)

    def _continue_partial(self) -> tuple[int, float, list[int]]:
        """(tokens, Σ(end² - start²), prompts that get their last chunk) for the prompt already begun."""
        request = self._partial
        if request < 0:
            return 0, 0.0, []
        start = self._partial_done
        end = min(self._ledger.goal_tokens[request], start + self.budget - self.batch)
        self._partial_done = end
        ended = end == self._ledger.goal_tokens[request]
        if ended:
            self._partial = -1
        return end - start, float(end * end - start * start), [request] if ended else []

    def _admit(self, tokens: int, square: float, ends: list[int]) -> tuple[int, float]:
        """Take waiting requests into this step while there is room; those with their KV decode in it at once."""
        ledger, block, waiting, running = self._ledger, self._block, self.waiting, self._running
        step = self._steps + 1
        while waiting and len(running) < self._cap and tokens + self.batch < self.budget:
            request = waiting[0]
            goal, start = ledger.goal_tokens[request], ledger.done_tokens[request]
            if ledger.arrival_s[request] > self._horizon_s:
                break
            blocks = -(-goal // block)
            if self.free_blocks - self._phases[step % block] < blocks + (start == goal and goal % block == 0):
                break
            waiting.popleft()
            running[request] = None
            self.free_blocks -= blocks
            if start == goal:
                self._join(request, self._steps)
                continue
            end = min(goal, start + self.budget - self.batch - tokens)
            tokens += end - start
            square += end * end - start * start
            if end == goal:
                ends.append(request)
            else:
                self._partial, self._partial_done = request, end
        return tokens, square

    def _compute(self, tokens: int, square: float, ends: list[int], step: int) -> None:
        """One step with `tokens` of prompt."""
        chunks = len(ends) + (self._partial >= 0)
        took_s = self._bare_step_s(step) + self._token_s * tokens + self._square_s * square + self._sequence_s * chunks
        self.free_blocks -= self._phases[step % self._block]
        self._account(took_s)
        self._horizon_s = self.now_s if self._lag else self.now_s + took_s
        self.now_s += took_s
        self._steps = step
        self.queued_tokens -= tokens
        for request in ends:
            self._emit_first(request, step)
        if self._due and self._due[0][0] == step:
            self._end_due()

    def _account(self, took_s: float) -> None:
        self.busy_s += took_s
        self.sequence_seconds += took_s * len(self._running)
        if self.free_blocks < self.least_free_blocks:
            self.least_free_blocks = self.free_blocks

    def _emit_first(self, request: int, step: int) -> None:
        """The prompt is computed, and a token with it: the first, or the next after a preemption."""
        ledger = self._ledger
        if ledger.first_token_s[request] < 0:
            ledger.first_token_s[request] = self.now_s
        ledger.left_tokens[request] -= 1
        if self._prefill_only or not ledger.left_tokens[request]:
            del self._running[request]
            self.free_blocks += -(-ledger.goal_tokens[request] // self._block)
            self._finish(request, self.now_s)
        else:
            self._join(request, step)

    def _join(self, request: int, step: int) -> None:
        """The sequence decodes from the step after `step` on."""
        goal = self._ledger.goal_tokens[request]
        self._ledger.joined_step[request] = step
        self.batch += 1
        self._offset += goal - step
        self._phases[(step - goal + 1) % self._block] += 1
        heappush(self._due, (step + self._ledger.left_tokens[request] + self._lag, request))

    def _leave(self, request: int) -> int:
        """Undo `_join` and free the blocks; the steps that the sequence decoded."""
        goal, joined = self._ledger.goal_tokens[request], self._ledger.joined_step[request]
        decoded = self._steps - joined
        self.batch -= 1
        self._offset -= goal - joined
        self._phases[(joined - goal + 1) % self._block] -= 1
        self.free_blocks += -(-(goal + decoded) // self._block)
        return decoded

    def _end_due(self) -> None:
        """Sequences whose last step in the batch this was. With a lag, they ended when it began."""
        ended_s = self._horizon_s if self._lag else self.now_s
        self._blocked = -1
        due = self._due
        while due and due[0][0] == self._steps:
            request = heappop(due)[1]
            self._leave(request)
            del self._running[request]
            self._finish(request, ended_s)

    def _finish(self, request: int, at_s: float) -> None:
        self._ledger.finish_s[request] = at_s
        self.finished.append(request)

    def _make_room(self, step: int) -> None:
        """Preempt from the last admitted on, until `step` has the blocks that it needs."""
        ledger = self._ledger
        self._blocked = -1
        while self._phases[step % self._block] > self.free_blocks:
            request, _ = self._running.popitem()
            if request == self._partial:
                self.free_blocks += -(-ledger.goal_tokens[request] // self._block)
                self.queued_tokens += self._partial_done - ledger.done_tokens[request]
                self._partial = -1
            else:
                decoded = self._leave(request)
                self._due = [entry for entry in self._due if entry[1] != request]
                heapify(self._due)
                if decoded >= ledger.left_tokens[request]:  # it had ended, and only kept its place
                    self._finish(request, self.now_s)
                    continue
                ledger.left_tokens[request] -= decoded
                ledger.goal_tokens[request] += decoded + 1
                ledger.done_tokens[request] = min(ledger.cached_tokens[request], ledger.goal_tokens[request] - 1)
                self.queued_tokens += ledger.goal_tokens[request] - ledger.done_tokens[request]
            self.waiting.appendleft(request)
            self.preemptions += 1
