"""The search in closed form: from a question to fleets that hold the promise, thousands of configurations at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from planner.devices import Device
from planner.length_views import running_contexts
from planner.search.answers import Skipped
from planner.search.designs import Designs, decode_designs, mixed_designs, prefill_designs
from planner.search.fleets import Fleet, Market, mixed_fleets, split_fleets
from planner.search.forms import Forms, all_forms
from planner.search.memory import Fit, fit, planned_length
from planner.search.question import PlanQuestion
from planner.search.steps import Machines
from planner.search.traffic import Traffic
from planner.types import PlannerError


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What promises, rates and prices do not change: forms, step times and memory."""

    question: PlanQuestion
    traffic: Traffic
    forms: Forms
    usd_per_hour: tuple[float, ...]  # of one device each
    max_len: int
    fit: Fit
    skipped: tuple[Skipped, ...]

    @cached_property
    def machines(self) -> Machines:
        return Machines.of(self.question, self.forms)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Fleets in closed form, cheapest first. `considered` counts designs; `fitting` those that fit into memory."""

    prepared: Prepared
    traffic: Traffic
    designs: tuple[Designs, ...]
    fleets: tuple[Fleet, ...]
    considered: int
    fitting: int


def prepare(question: PlanQuestion, traffic: Traffic, devices: tuple[Device, ...] | None = None) -> Prepared:
    """Raises PlannerError if no device can be planned with, with the reason of the first."""
    lengths = traffic.lengths
    max_len = planned_length(question, traffic.longest_tokens)
    _check_length(question, traffic, max_len)
    priced, prices, refusals = _priced(question, devices or question.devices)
    isl, osl = float(lengths.prompt_tokens.mean()), float(lengths.output_tokens.mean())
    forms = all_forms(question, priced, isl=isl, osl=osl)
    refusals += forms.refusals
    if not forms.pairs:
        raise refusals[0][1] if refusals else _no_split(question)
    return Prepared(
        question=question,
        traffic=traffic,
        forms=forms,
        usd_per_hour=prices,
        max_len=max_len,
        fit=fit(question, forms, running_contexts(lengths), max_len=max_len),
        skipped=tuple(Skipped(what=what, reason=f"{error}; {error.remedy}") for what, error in refusals),
    )


def search(prepared: Prepared, traffic: Traffic | None = None) -> Found:
    """All fleets for the traffic, which may promise or bring something else than `prepared` knew, at equal lengths."""
    wanted, space = traffic or prepared.traffic, prepared.question.space
    market = Market.of(prepared.forms, prepared.usd_per_hour)
    designs = tuple(_designs(prepared, wanted))
    rate_rps = wanted.busy_rate_rps
    fleets: list[Fleet] = []
    mixed = [one for one in designs if one.role == "mixed"]
    for one in mixed:
        fleets += mixed_fleets(market, one, rate_rps)
    split = [one for one in designs if one.role != "mixed"]
    if len(split) == 2:
        fleets += split_fleets(market, split[0], split[1], rate_rps)
    pairs, budgets, seqs = prepared.fit.fits.shape
    return Found(
        prepared=prepared,
        traffic=wanted,
        designs=designs,
        fleets=tuple(sorted(fleets, key=Fleet.rank)),
        considered=pairs * (budgets * seqs * space.mixed + (budgets + seqs) * space.disaggregated),
        fitting=sum(len(one) for one in designs),
    )


def _designs(prepared: Prepared, traffic: Traffic) -> Iterator[Designs]:
    machines, space = prepared.machines, prepared.question.space
    if not prepared.fit.fits.any():
        return
    if space.mixed:
        yield mixed_designs(machines, prepared.fit, space, traffic)
    if space.disaggregated:
        yield prefill_designs(machines, prepared.fit, space, traffic)
        yield decode_designs(machines, prepared.fit, space, traffic)


def _priced(
    question: PlanQuestion, devices: tuple[Device, ...]
) -> tuple[tuple[Device, ...], tuple[float, ...], tuple[tuple[str, PlannerError], ...]]:
    """The devices that somebody offers, what one of each costs, and the others."""
    priced: list[Device] = []
    prices: list[float] = []
    refusals: list[tuple[str, PlannerError]] = []
    for device in devices:
        try:
            price = question.prices.price(device, provider=question.provider, region=question.region)
            device.figure("memory_gib")
        except PlannerError as error:
            refusals.append((device.name, error))
            continue
        priced.append(device)
        prices.append(price.usd_per_hour)
    return tuple(priced), tuple(prices), tuple(refusals)


def _check_length(question: PlanQuestion, traffic: Traffic, max_len: int) -> None:
    longest, most = traffic.longest_tokens, question.shape.max_position_embeddings
    if longest > most:
        problem = f"{question.model} takes {most:,} tokens at most, prompt and answer together"
        raise PlannerError(
            traffic.workload.file, "lengths", longest, problem, "bound isl and osl, or name another model"
        )
    if longest > max_len:
        remedy = f"raise it to {longest}, or bound the lengths"
        problem = f"the workload has requests of {longest:,} tokens"
        raise PlannerError("settings", "max_model_len", max_len, problem, remedy)


def _no_split(question: PlanQuestion) -> PlannerError:
    degrees = question.space.tensor_degrees
    return PlannerError("settings", "tp", degrees, "the model allows none of these splits", "allow tp 1")


def with_shares(question: PlanQuestion, found: Found) -> tuple[Device, ...]:
    """Fractions of the devices of which a single one, whole, would do."""
    enough = {
        pool.device.name
        for fleet in found.fleets
        if not fleet.disaggregated
        for pool in fleet.pools
        if pool.replicas * pool.replica_gpus <= 1
    }
    return tuple(
        device.fraction(spec) for device in question.devices if device.name in enough for spec in fraction_specs(device)
    )


def fraction_specs(device: Device) -> Iterator[str]:
    """Cuts that leave less than the whole: the hardware's own, or halves and quarters of its time without any."""
    if device.mig is None:
        yield from ("1/2", "1/4")
        return
    for profile in device.mig.profiles:
        if profile.compute_slices < device.mig.compute_slices:
            yield profile.name


def priced_anew(prepared: Prepared, factor: float) -> Prepared:
    """The same with all prices times `factor`."""
    return replace(prepared, usd_per_hour=tuple(price * factor for price in prepared.usd_per_hour))
