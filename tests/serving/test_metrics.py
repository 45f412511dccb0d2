"""Ferry's metrics: what is counted is shown, and merged expositions are one valid exposition."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import GatewayMetrics, merge

Sample = tuple[str, tuple[tuple[str, str], ...], float]


def gateway(name: str, *, model: str = "m", ended: int = 1, text_ms: int = 10) -> str:
    metrics = GatewayMetrics(CollectorRegistry(), model_name=model, gateway=name)
    for _ in range(ended):
        metrics.ended("length")
        metrics.moved(reason="prefill_done", mode="kv")
    metrics.ttft_s.observe(text_ms / 1000)
    return metrics.exposition()


def samples(exposition: str) -> Counter[Sample]:
    return Counter(
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if not sample.name.endswith("_created")
    )


def heads(exposition: str) -> list[str]:
    return [line.split(" ", 3)[1] + line.split(" ", 3)[2] for line in exposition.splitlines() if line.startswith("# ")]


def test_counts_are_shown_with_their_labels() -> None:
    metrics = GatewayMetrics(CollectorRegistry(), model_name="m", gateway="g")
    metrics.ended("stop")
    metrics.moved(reason="engine_lost", mode="replay")
    metrics.in_flight.set(2)
    shown = samples(metrics.exposition())
    common = (("gateway", "g"), ("model_name", "m"))
    assert shown[("ferry:requests_in_flight", common, 2.0)] == 1
    assert shown[("ferry:requests_total", (*common, ("outcome", "stop")), 1.0)] == 1
    assert shown[("ferry:moves_total", (common[0], ("mode", "replay"), common[1], ("reason", "engine_lost")), 1.0)] == 1


def test_nothing_merges_to_an_empty_exposition() -> None:
    assert samples(merge([])) == samples(merge([""])) == Counter()


def test_one_exposition_stays_what_it_is() -> None:
    one = gateway("a")
    assert merge([one]) == one


def test_help_and_type_come_once_and_samples_together() -> None:
    merged = merge([gateway("a"), gateway("b", ended=3)])
    assert len(heads(merged)) == len(set(heads(merged)))
    assert samples(merged) == samples(gateway("a")) + samples(gateway("b", ended=3))


def test_families_of_others_are_kept() -> None:
    engine = '# HELP vllm:x_total Things.\n# TYPE vllm:x_total counter\nvllm:x_total{engine="0"} 4.0\n'
    merged = merge([gateway("a"), engine, engine.replace('"0"', '"1"')])
    assert merged.endswith(engine + 'vllm:x_total{engine="1"} 4.0\n')


def test_a_family_without_help_is_kept() -> None:
    bare = "# TYPE x gauge\nx 1.0\n"
    assert samples(merge([bare, "y 2.0\n"])) == Counter({("x", (), 1.0): 1, ("y", (), 2.0): 1})


NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4, unique=True)


@given(names=NAMES, model=st.text(st.characters(exclude_categories=["Cs"]), max_size=5), data=st.data())
def test_merging_loses_and_doubles_nothing_however_it_is_split(
    names: list[str], model: str, data: st.DataObject
) -> None:
    expositions = [gateway(name, model=model, ended=n) for n, name in enumerate(names)]
    at = data.draw(st.integers(0, len(names)))
    merged = merge([merge(expositions[:at]), merge(expositions[at:])])
    assert samples(merged) == sum(map(samples, expositions), Counter[Sample]())
    assert samples(merged) == samples(merge(expositions))
    assert len(heads(merged)) == len(set(heads(merged)))
