"""A pool on spot: the mix that holds its replicas, the headroom for evacuations, and what shorter notices do to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.devices import Device
from planner.evacuation import MOST_SPARE, Evacuation
from planner.plan import Cost, NoticeEffect, SpotPlan
from planner.prices import Market, Price
from planner.queueing import mixed_engine
from planner.queueing.engine import EngineEstimate, decode_engine
from planner.search.fleets import Pool
from planner.search.question import PlanQuestion, SpotTerms
from planner.search.traffic import Traffic
from planner.spot import SpotMix, cheapest_mix, mix_of
from planner.types import PlannerError

# Leads that every plan is asked about, in seconds: AWS, GCP and Azure, none.
LEADS_S = (120.0, 30.0, 0.0)
# A replacement: loading weights from disk or network, and compiling, capturing graphs, joining.
LOAD_BYTES_PER_S, START_S = 2e9, 90.0
LINK_SHARE = 0.7  # of a network's sheet bandwidth, for KV on the move
# A moved stream may stall as long as a first token may take, or this long without such a promise.
STALL_S = 1.0
ROUNDS = 8
MARKETS: tuple[Market, Market] = ("on_demand", "spot")


@dataclass(frozen=True, kw_only=True)
class Staffing:
    """How the replicas of one pool are bought. `needed` of them must be up."""

    needed: int
    on_demand: int
    spot: int
    probability: float
    cost: Cost
    terms: SpotPlan | None = None

    @property
    def replicas(self) -> int:
        return self.on_demand + self.spot


def on_demand_only(question: PlanQuestion, pool: Pool) -> Staffing:
    """All replicas on demand."""
    price = _price(question, pool, "on_demand")
    paid = pool.replicas * price.usd_per_hour
    return Staffing(
        needed=pool.replicas,
        on_demand=pool.replicas,
        spot=0,
        probability=1.0,
        cost=Cost(
            usd_per_hour=paid,
            expected_usd_per_hour=paid,
            low_usd_per_hour=pool.replicas * price.low_usd_per_hour,
            high_usd_per_hour=pool.replicas * price.high_usd_per_hour,
        ),
    )


def staffing(question: PlanQuestion, pool: Pool, traffic: Traffic, weights_bytes: int) -> Staffing:
    """The cheapest mix of on-demand and spot replicas, with headroom that holds the SLO through an evacuation."""
    plain = on_demand_only(question, pool)
    terms = question.spot
    if terms is None or not question.prices.has(pool.device, "spot"):
        return plain
    on_demand, spot = (_price(question, pool, market) for market in MARKETS)
    event = evacuation(pool, traffic, terms, weights_bytes)
    try:
        mix = _mix(pool.replicas, terms, event, on_demand, spot)
    except PlannerError:
        return plain  # more headroom than any plan should have: this pool stays on demand
    if not mix.spot or mix.expected_usd_per_hour >= plain.cost.expected_usd_per_hour:
        return plain
    lost = terms.market.lost_at_once(mix.spot)
    return Staffing(
        needed=pool.replicas,
        on_demand=mix.on_demand,
        spot=mix.spot,
        probability=mix.probability,
        cost=_cost(mix),
        terms=SpotPlan(
            market=terms.name,
            availability=terms.market.availability,
            lead_s=terms.notice.lead_s,
            missed_notices=terms.notice.missed,
            probability=mix.probability,
            spare_replicas=mix.on_demand + mix.spot - pool.replicas,
            warm_up_s=event.warm_up_s,
            notices=tuple(
                _effect(replace(event, lost=lost, lead_s=lead_s), mix, terms, on_demand, spot) for lead_s in LEADS_S
            ),
        ),
    )


def evacuation(pool: Pool, traffic: Traffic, terms: SpotTerms, weights_bytes: int) -> Evacuation:
    """One bad event in this pool, with a replica lost."""
    designs, row = pool.designs, pool.row
    costs, rules = designs.costs.row(row), designs.rules(row)
    rate_rps = traffic.busy_rate_rps / pool.replicas / float(designs.ranks[row])
    lengths = traffic.lengths
    running: EngineEstimate
    if designs.role == "decode":
        running = decode_engine(costs, rules, lengths, rate_rps=rate_rps)
    else:
        running = mixed_engine(costs, rules, lengths, rate_rps=rate_rps)
    step_s, batch = float(running.step_s), float(running.batch)
    if designs.role == "prefill" or not step_s < float("inf"):
        step_s, batch = float(costs.step_s), 1.0
    steps = 1.0 if designs.role == "prefill" else lengths.mean_decode_steps
    token_bytes = _kv_bytes_per_token(pool)
    prompt_s = costs.prefill_token_s or costs.step_s / rules.max_num_batched_tokens
    stall_s = min((one.promise.tightest_s("ttft") or STALL_S) for one in traffic.classes)
    return Evacuation(
        load_rps=traffic.busy_rate_rps,
        replica_rps=pool.replica_rps,
        lost=1,
        lead_s=terms.notice.lead_s,
        warm_up_s=START_S + weights_bytes / LOAD_BYTES_PER_S if terms.warm_up_s is None else terms.warm_up_s,
        stay_s=max(1e-3, steps * step_s + float(lengths.prompts.mean_tokens) * float(prompt_s)),
        kv_bytes=batch * float(designs.ranks[row]) * lengths.mean_context_tokens * token_bytes,
        kv_bytes_per_token=token_bytes,
        link_bytes_per_s=_link_bytes_per_s(pool.device) * pool.form.layout.devices,
        prefill_tokens_per_s=float(designs.ranks[row]) / float(prompt_s),
        replay_within_s=stall_s,
    )


def _mix(need: int, terms: SpotTerms, event: Evacuation, on_demand: Price, spot: Price) -> SpotMix:
    """The cheapest mix that has the headroom for what its own spot replicas may lose at once."""
    wanted, mix = need, None
    for _ in range(ROUNDS):
        mix = cheapest_mix(
            wanted,
            terms.market,
            on_demand=on_demand,
            spot=spot,
            epsilon=terms.epsilon,
            least_on_demand=min(terms.least_on_demand, wanted),
        )
        if not mix.spot:
            return mix
        lost = terms.market.lost_at_once(mix.spot)
        short = need + replace(event, lost=lost).spare_replicas - (mix.on_demand + mix.spot)
        if short <= 0:
            break
        wanted += max(1, short // 2)
    assert mix is not None
    return mix_of(need, mix.on_demand, mix.spot, terms.market, on_demand=on_demand, spot=spot)


def _effect(event: Evacuation, mix: SpotMix, terms: SpotTerms, on_demand: Price, spot: Price) -> NoticeEffect:
    """What this lead allows the planned pool, and what the pool would cost with just the headroom that it asks for."""
    try:
        spare = event.spare_replicas
    except PlannerError:
        spare = MOST_SPARE
    replicas = mix.on_demand + mix.spot
    spots = max(0, event.base_replicas + spare - mix.on_demand)
    fitted = mix_of(mix.need, mix.on_demand, min(spots, MOST_SPARE), terms.market, on_demand=on_demand, spot=spot)
    return NoticeEffect(
        lead_s=event.lead_s,
        lost=event.lost,
        moved_share=event.moved_share,
        replayed_tokens=event.replayed_tokens,
        spare_replicas=spare,
        misses=event.misses_per_event(replicas),
        usd_per_hour=fitted.expected_usd_per_hour,
    )


def _cost(mix: SpotMix) -> Cost:
    return Cost(
        usd_per_hour=mix.usd_per_hour,
        expected_usd_per_hour=mix.expected_usd_per_hour,
        low_usd_per_hour=mix.low_usd_per_hour,
        high_usd_per_hour=mix.high_usd_per_hour,
    )


def _price(question: PlanQuestion, pool: Pool, market: Market) -> Price:
    """Of one replica."""
    one = question.prices.price(pool.device, market, provider=question.provider, region=question.region)
    size = pool.form.layout.devices
    return Price(
        usd_per_hour=one.usd_per_hour * size,
        low_usd_per_hour=one.low_usd_per_hour * size,
        high_usd_per_hour=one.high_usd_per_hour * size,
        offer=one.offer,
    )


def _kv_bytes_per_token(pool: Pool) -> float:
    """All devices of one replica together."""
    return max(1.0, float(pool.designs.kv_token_bytes[pool.row]))


def _link_bytes_per_s(device: Device) -> float:
    """Of one device, to other nodes; over the host's bus where no network card is known."""
    if device.has("rdma_gb_s"):
        return device.rdma_bytes_per_s * LINK_SHARE
    return device.pcie_bytes_per_s * LINK_SHARE if device.has("pcie_gb_s") else 1e9
