"""One deployment, named by flags, as the simulator takes it: its step costs and its limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.devices import Device
from planner.length_views import request_lengths, running_contexts
from planner.models import ModelShape
from planner.perf.calibration import Calibration
from planner.perf.limits import default_budget_tokens, default_sequences
from planner.perf.work import Layout
from planner.prices import Prices
from planner.queueing import EngineRules
from planner.search.forms import all_forms
from planner.search.memory import fit, planned_length
from planner.search.question import PlanQuestion, Space
from planner.search.steps import Machines, decode_costs, mixed_costs
from planner.simulate import Pool
from planner.slo import Slo
from planner.types import PlannerError
from planner.workload import Sample, Workload

BLOCK_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Equal engines that prefill and decode. Limits of None are vLLM's defaults for the device."""

    model: str
    shape: ModelShape
    device: Device
    tp: int
    pp: int
    ep: int
    replicas: int
    quant: str | None
    kv_dtype: str
    max_num_batched_tokens: int | None
    max_num_seqs: int | None

    @property
    def text(self) -> str:
        """In words."""
        degrees = f"TP{self.tp}" + (f" PP{self.pp}" if self.pp > 1 else "") + (f" EP{self.ep}" if self.ep > 1 else "")
        return f"{self.replicas} mixed x {self.device.name} {degrees} {self.quant or self.shape.quantisation.name}"

    def pool(self, slo: Slo, workload: Workload, sample: Sample, calibration: Calibration, prices: Prices) -> Pool:
        """The engines under the sample's lengths. Raises PlannerError if they cannot run it."""
        layout = Layout(tp=self.tp, pp=self.pp, ep=self.ep)
        budget = self.max_num_batched_tokens or default_budget_tokens(self.device, layout)
        seqs = self.max_num_seqs or min(budget, default_sequences(self.device, layout))
        space = Space(
            tensor_degrees=(self.tp,), pipeline_degrees=(self.pp,), expert_parallel=self.ep > 1, quants=(self.quant,),
            kv_dtypes=(self.kv_dtype,), budgets_tokens=(budget,), max_num_seqs=(seqs,),
        )  # fmt: skip
        question = PlanQuestion(
            model=self.model, shape=self.shape, slo=slo, workload=workload, devices=(self.device,), prices=prices,
            calibration=calibration, space=space,
        )  # fmt: skip
        lengths = request_lengths(sample)
        forms = all_forms(question, question.devices, isl=float(sample.isl.mean()), osl=float(sample.osl.mean()))
        at = next((at for at, pair in enumerate(forms.pairs) if forms.forms[pair.form].layout.ep == self.ep), None)
        if at is None:
            raise self._refusal(forms.refusals)
        longest = int((sample.isl + sample.osl).max())
        memory = fit(question, forms, running_contexts(lengths), max_len=planned_length(question, longest))
        if not memory.fits[at, 0, 0]:
            problem = f"{self.model} leaves no room for a request of {longest:,} tokens on the {self.device.label}"
            raise PlannerError("settings", "tp", self.tp, problem, "raise tp or pp, or see `ferry plan memory`")
        machine = Machines.of(question, forms).take(np.array([at], np.intp))
        each, tokens = np.array([float(seqs)]), np.array([float(budget)])
        costs = mixed_costs(machine, decode_costs(machine, each, lengths), each, tokens, lengths).row(0)
        rules = EngineRules(
            max_num_batched_tokens=budget,
            max_num_seqs=seqs,
            kv_blocks=max(1, int(memory.kv_tokens[at, 0, 0]) // BLOCK_TOKENS),
            block_size_tokens=BLOCK_TOKENS,
        )
        return Pool(engines=self.replicas, costs=costs, rules=rules)

    def _refusal(self, refusals: tuple[tuple[str, PlannerError], ...]) -> PlannerError:
        if refusals:
            return refusals[0][1]
        problem = f"vLLM cannot split {self.model} like that over the {self.device.label} (pp {self.pp}, ep {self.ep})"
        return PlannerError("settings", "tp", self.tp, problem, "see `ferry plan memory` for the degrees that fit")
