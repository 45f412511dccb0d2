"""How vLLM lays a model over devices: tensor, pipeline and expert parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.tensors import Tensor
from planner.types import PlannerError

if TYPE_CHECKING:
    from planner.models import ModelShape


def stage_layers(num_layers: int, stage: int, pp: int) -> range:
    """The layers of one pipeline stage. As vLLM does, spare layers go to the stages before the last."""
    sizes = [num_layers // pp] * pp
    for spare in range(num_layers % pp):
        sizes[-2 - spare] += 1
    start = sum(sizes[:stage])
    return range(start, start + sizes[stage])


@dataclass(frozen=True, kw_only=True)
class Split:
    """One device's place: its pipeline `stage`, and how many share that stage's matrices (tp) and experts (ep)."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    stage: int = 0

    def check(self, shape: ModelShape) -> None:
        """Raises PlannerError for a degree that vLLM refuses for this model."""
        for degree in ("tp", "pp", "ep"):
            value = getattr(self, degree)
            if value < 1:
                raise PlannerError("settings", degree, value, "must be at least 1", f"set {degree} to 1")
        if self.pp > shape.num_layers:
            raise _refusal("pp", self.pp, f"the model has {shape.num_layers} layers")
        if self.ep > shape.num_experts:
            raise _refusal("ep", self.ep, f"the model has {shape.num_experts} experts")
        if shape.num_attention_layers:
            self._check_heads(shape)
        if shape.state and shape.state.value_heads % self.tp:
            raise _refusal("tp", self.tp, f"does not divide the {shape.state.value_heads} heads of recurrent layers")
        self._check_blocks(shape)

    def _check_heads(self, shape: ModelShape) -> None:
        if shape.num_attention_heads % self.tp:
            raise _refusal("tp", self.tp, f"does not divide the {shape.num_attention_heads} attention heads")
        if shape.num_kv_heads % self.tp and self.tp % shape.num_kv_heads:
            raise _refusal("tp", self.tp, f"neither divides the {shape.num_kv_heads} KV heads nor is a multiple")

    def _check_blocks(self, shape: ModelShape) -> None:
        """Block-wise fp8 cannot cut a block of weights, so narrow experts bear only so much of tensor parallelism."""
        side = shape.quantisation.group_rows
        if side > 1 and self.ep == 1 and shape.experts and shape.experts.intermediate_size % (side * self.tp):
            width = shape.experts.intermediate_size
            raise _refusal("tp", self.tp, f"cuts experts {width} wide below whole fp8 blocks of {side}; use ep")

    def holds(self, tensor: Tensor, layers: range) -> bool:
        """Whether this stage, which has `layers`, has the tensor."""
        if tensor.layer is not None:
            return tensor.layer in layers
        first, last = self.stage == 0, self.stage == self.pp - 1
        return {"first": first, "last": last, "both": first or last}[tensor.place]

    def share(self, tensor: Tensor, amount: int) -> int:
        """This device's part of `amount`, which belongs to the tensor."""
        if tensor.part == "experts" and self.ep > 1:
            return -(-amount * -(-tensor.copies // self.ep) // tensor.copies)
        return -(-amount * -(-tensor.units // self.tp) // tensor.units)


def _refusal(key: str, value: int, problem: str) -> PlannerError:
    return PlannerError("settings", key, value, problem, f"choose another {key}")
