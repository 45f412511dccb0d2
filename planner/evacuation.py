"""From a spot notice to the warm replacement: what still serves, what is moved, and the headroom that holds the SLO.

The order of events, as `serving` acts on a notice:

    0            the notice; no new request goes to the doomed replicas; replacements are ordered
    0 .. cut     the doomed replicas go on decoding while their KV is copied
    cut          = lead - margin: their requests continue elsewhere, with the KV that was copied, replaying the rest
    warm_up      the replacements take load

So until the replacements are warm the others carry all new requests. If the cut comes after `warm_up`, the old ones
move straight to the replacements and the others see only what arrives meanwhile; if it comes before, they see it all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import ceil

from planner.types import PlannerError

# Between the kill and the last byte: polling of the notice, clock skew and the hand-over itself.
MARGIN_S = 3.0

# More would be a plan that runs mostly on headroom; ask for other devices instead.
MOST_SPARE = 10_000

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Evacuation:
    """The inputs; everything else follows. A replica is the unit that vanishes, with all of its devices.

    `replica_rps` is the rate at which one replica keeps the SLO, `stay_s` how long a request stays with it,
    `kv_bytes` what it holds for running requests, and `link_bytes_per_s` what it can send of that.
    `replay_within_s` is the stall that a moved stream may have: replays must be done by then.
    """

    load_rps: float
    replica_rps: float
    lost: int
    lead_s: float
    warm_up_s: float
    stay_s: float
    kv_bytes: float
    kv_bytes_per_token: float
    link_bytes_per_s: float
    prefill_tokens_per_s: float
    replay_within_s: float
    margin_s: float = MARGIN_S

    def __post_init__(self) -> None:
        may_be_zero = {"lost", "lead_s", "warm_up_s", "kv_bytes", "margin_s"}
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf") or (value == 0 and field.name not in may_be_zero):
                problem = "a finite number above zero is needed"
                raise PlannerError("evacuation", field.name, value, problem, f"set {field.name} above 0")

    @property
    def base_replicas(self) -> int:
        """What the load needs while nothing is lost."""
        return max(1, ceil(self.load_rps / self.replica_rps - 1e-9))

    @property
    def cut_s(self) -> float:
        """When the doomed replicas stop decoding."""
        return max(0.0, self.lead_s - self.margin_s)

    @property
    def transfer_s(self) -> float:
        """How long all KV of one replica takes over its link."""
        return self.kv_bytes / self.link_bytes_per_s

    @property
    def moved_share(self) -> float:
        """The share of the KV that leaves in time."""
        return 1.0 if self.transfer_s <= self.cut_s else self.cut_s / self.transfer_s

    @property
    def replayed_tokens(self) -> float:
        """Tokens to compute again elsewhere, over all lost replicas."""
        return self.lost * (1 - self.moved_share) * self.kv_bytes / self.kv_bytes_per_token

    @property
    def replay_replicas(self) -> float:
        """How many replicas are busy with replays until they are done."""
        return self.replayed_tokens / self.prefill_tokens_per_s / self.replay_within_s

    @property
    def shifted_share(self) -> float:
        """The most of the lost replicas' load that the others ever see, before the replacements are warm."""
        if self.cut_s < self.warm_up_s:
            return 1.0
        return min(1.0, self.warm_up_s / self.stay_s)

    def holds_with(self, replicas: int) -> bool:
        """Whether `replicas` in all keep the SLO throughout."""
        return self.shortage(replicas) <= 1e-9

    def shortage(self, replicas: int) -> float:
        """The share of the load beyond what the surviving replicas can serve within the SLO, at the worst moment."""
        lost = min(self.lost, replicas)
        left = replicas - lost
        load_rps = self.load_rps * (left + self.shifted_share * lost) / replicas
        able_rps = max(0.0, left - self.replay_replicas) * self.replica_rps
        return max(0.0, load_rps - able_rps) / self.load_rps

    @property
    def spare_replicas(self) -> int:
        """The headroom: replicas beyond `base_replicas` so that the SLO holds throughout. Raises PlannerError."""
        low, high = 0, self.lost + ceil(self.replay_replicas)
        if high > MOST_SPARE:
            problem = f"{high:,} spare replicas would have to replay what cannot be moved"
            remedy = "raise link_bytes_per_s or replay_within_s, or keep this pool on demand"
            raise PlannerError("evacuation", "replay_within_s", self.replay_within_s, problem, remedy)
        while low < high:
            middle = (low + high) // 2
            if self.holds_with(self.base_replicas + middle):
                high = middle
            else:
                low = middle + 1
        return low

    def misses_per_event(self, replicas: int) -> float:
        """Requests that miss the SLO in one such event with `replicas` in all, if none is put off."""
        window_s = self.warm_up_s + (self.replay_within_s if self.replayed_tokens else 0.0)
        return self.shortage(replicas) * self.load_rps * window_s

    def attainment_lost(self, replicas: int, *, events_per_hour: float) -> float:
        """The share of all requests that miss the SLO through such events."""
        return min(1.0, events_per_hour * self.misses_per_event(replicas) / (self.load_rps * SECONDS_PER_HOUR))

    def with_lead(self, lead_s: float) -> Evacuation:
        """The same event after a notice of `lead_s` seconds; 0 is none at all."""
        return replace(self, lead_s=lead_s)

    def line(self) -> str:
        """What this notice allows, for a terminal."""
        return (
            f"notice {self.lead_s:g} s: {self.moved_share:.0%} of the KV moves, {self.replayed_tokens:,.0f} tokens "
            f"are replayed, headroom {self.spare_replicas} on {self.base_replicas} replicas until the replacement "
            f"is warm after {self.warm_up_s:g} s"
        )
