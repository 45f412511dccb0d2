"""A leg of a context, as the engine sees it: what to resume from, and where to hand off.

A context that arrives with generated tokens must go on as if this engine had preempted it: those tokens are
*output*, so that penalties, `min_tokens`, limits, stop conditions and the grammar continue exactly. vLLM has no
request field for that; the leg rides in `SamplingParams.extra_args`, which reaches the scheduler and the workers.

Three places act on it, each through a hook that vLLM offers:

* the scheduler (`scheduler_cls`): rebuilds the request's output, its handoff limit, and its grammar state;
* the worker (V1 model runner): fills `CachedRequestState.output_token_ids` and advances the seeded generator;
* the connector (`serving.engine.connector`): pulls the blocks of all tokens, not only of the prompt.

The V2 model runner derives all of that from the scheduler's token list, and draws by position.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import RequestStatus

from serving.engine.handoff import ferry_hand_off, ferry_holds
from serving.engine.loan import ferry_lend
from serving.engine.messages import LEG_KEY, Leg

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

# Philox advances its offset by 4 for each draw that vLLM makes per request and step
# (vllm/v1/worker/gpu_model_runner.py rewinds by the same amount when it discards a draw).
PHILOX_OFFSET_PER_DRAW = 4


def leg_of(params: SamplingParams | None) -> Leg | None:
    """The leg that a request carries, or None for a request that no Ferry gateway shaped."""
    if params is None or not params.extra_args:
        return None
    leg: dict[str, Any] | None = params.extra_args.get(LEG_KEY)
    return Leg(**leg) if leg else None


def resume(request: Request, leg: Leg) -> None:
    """Rebuild `request` as if this engine had generated the leg's tokens and then preempted it."""
    if leg.output_token_ids:
        request.append_output_token_ids(list(leg.output_token_ids))
        # vLLM asserts that the first prefill covers no more than the prompt; a resumed one covers output too.
        if len(leg.output_token_ids) > 1:
            request.prefill_stats = None
    if leg.handoff_at_tokens is not None:
        request.max_tokens = min(request.max_tokens, leg.handoff_at_tokens)


# A utility method of the core is found by its name; this adds two, and changes nothing that vLLM calls itself.
EngineCore.ferry_hand_off = ferry_hand_off
EngineCore.ferry_lend = ferry_lend
EngineCore.ferry_holds = ferry_holds


def resuming(base: type[Scheduler]) -> type[Scheduler]:
    """`base` with requests that may arrive with output. vLLM picks between two schedulers; both need it."""

    class ResumingScheduler(base):
        def add_request(self, request: Request) -> None:
            leg = leg_of(request.sampling_params)
            if leg is not None:
                resume(request, leg)
            super().add_request(request)

        def _handle_blocked_waiting_request(self, request: Request) -> bool:
            awaits_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            ready: bool = super()._handle_blocked_waiting_request(request)
            if not (ready and awaits_grammar and request.num_output_tokens) or self._replay_grammar(request):
                return ready
            # One request fails, as with a grammar that does not compile. An exception here would end the core, and
            # each engine in turn that the request is replayed on.
            rejected = f"the grammar of {request.request_id} rejects tokens that it produced itself"
            logger.error(rejected)
            request.structured_output_request.grammar = RuntimeError(rejected)
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            return bool(super()._handle_blocked_waiting_request(request))

        def _replay_grammar(self, request: Request) -> bool:
            """Let the grammar go on where the tokens of earlier legs lead; False when it rejects one. What the model
            thought is not the grammar's: vLLM leaves it out here as it did when it was made."""
            accepted: bool = self.structured_output_manager.accept_tokens(request, list(request.output_token_ids))
            return accepted

    ResumingScheduler.__name__ = ResumingScheduler.__qualname__ = f"Resuming{base.__name__}"
    return ResumingScheduler


ResumingSyncScheduler = resuming(Scheduler)
ResumingAsyncScheduler = resuming(AsyncScheduler)


class SeededDraws(torch.Generator):
    """A request's generator that can stand at any draw, also on CPU.

    vLLM rewinds the generator of a partial prefill by `set_offset(get_offset() - 4)`, which CPU generators refuse
    with an exception that would end the engine. Here a rewind replays the draws that delivered a token.
    """

    seed_value: int
    output_token_ids: list[int]

    def stand_after(self, seed: int, output_token_ids: list[int]) -> None:
        """Stand where a run stands that has sampled `output_token_ids`; the list may grow later."""
        self.seed_value, self.output_token_ids = seed, output_token_ids
        self.manual_seed(seed)
        draws = len(output_token_ids)
        if self.device.type == "cpu":
            for _ in range(draws):
                # One draw as TopKTopPSampler.forward_cpu makes it (vllm/v1/sample/ops/topk_topp_sampler.py).
                torch.randint(0, 2**31, (1,), generator=self, dtype=torch.long)
        else:
            self.set_offset(draws * PHILOX_OFFSET_PER_DRAW)

    def get_offset(self) -> int:
        return 0 if self.device.type == "cpu" else int(super().get_offset())

    def set_offset(self, offset: int) -> None:
        if self.device.type == "cpu":
            self.stand_after(self.seed_value, self.output_token_ids)
        else:
            super().set_offset(offset)


def install_in_worker() -> None:
    """Make the V1 model runner build its request states from legs. Idempotent; runs in each worker process."""
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    if gpu_model_runner.CachedRequestState is not CachedRequestState:
        return

    class ResumedRequestState(CachedRequestState):
        def __post_init__(self) -> None:
            super().__post_init__()
            leg = leg_of(self.sampling_params)
            if leg is not None and leg.output_token_ids:
                self.output_token_ids = list(leg.output_token_ids)
            given: torch.Generator | None = self.generator
            if given is not None and self.sampling_params is not None:
                draws = SeededDraws(device=given.device)
                draws.stand_after(self.sampling_params.seed, self.output_token_ids)
                self.generator: torch.Generator | None = draws

    gpu_model_runner.CachedRequestState = ResumedRequestState
