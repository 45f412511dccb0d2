"""What the server's metrics come to, and that looking goes on whatever it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from loadtest.report import as_json, build
from loadtest.results import save
from loadtest.saved import read_run
from loadtest.types import Target
from loadtest.watch.exposition import parse, server_sample
from loadtest.watch.gpus import gpus_here
from loadtest.watch.summary import rise, server_total
from loadtest.watch.types import EngineSample, GpuSample, ServerSample, Watched
from loadtest.watch.watcher import Watcher
from serving.metrics import GatewayMetrics, merge
from tests.loadtest.fake_ferry import FakeFerry
from tests.loadtest.test_results import START_NS, result, some

S = 1_000_000_000


def vllm(engine: str, pool: str, *, running: int, waiting: int, kv: float, preempted: int) -> str:
    """The families of one engine, as its meter writes them."""
    labels = f'{{engine="{engine}",pool="{pool}",model_name="a \\"model\\""}}'
    return (
        f"# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
        f"vllm:num_requests_running{labels} {running}.0\n"
        f"vllm:num_requests_waiting{labels} {waiting}.0\nvllm:kv_cache_usage_perc{labels} {kv}\n"
        f"vllm:num_requests_waiting_by_reason{labels} 99.0\n"
        f"vllm:num_preemptions_total{labels} {preempted}.0\nvllm:num_preemptions_created{labels} 1.79e+09\n"
    )


def gateway(moves: int) -> str:
    metrics = GatewayMetrics(CollectorRegistry(), model_name="m", gateway="g1")
    for _ in range(moves):
        metrics.moved(reason="drain", mode="kv")
    metrics.moved(reason="prefill_done", mode="kv")
    return metrics.exposition()


def exposition(moves: int = 0) -> str:
    """As the gateway serves it: engines and gateways merged."""
    return merge(
        [
            vllm("p-1", "prefill", running=1, waiting=4, kv=0.25, preempted=2),
            vllm("d-1", "decode", running=7, waiting=0, kv=0.5, preempted=0),
            vllm("d-2", "decode", running=3, waiting=1, kv=0.75, preempted=1),
            gateway(moves),
        ]
    )


def test_an_exposition_gives_each_engine_and_the_counters() -> None:
    sample = server_sample(exposition(moves=5), 7, 1)
    assert sample.engines == (
        EngineSample("d-1", "decode", 7, 0, 0.5),
        EngineSample("d-2", "decode", 3, 1, 0.75),
        EngineSample("p-1", "prefill", 1, 4, 0.25),
    )
    assert sample.running == 11 and sample.waiting == 5
    assert sample.counters["moves"] == {
        "gateway=g1,mode=kv,reason=drain": 5,
        "gateway=g1,mode=kv,reason=prefill_done": 1,
    }
    assert sum(sample.counters["preemptions"].values()) == 3


def test_labels_may_hold_anything() -> None:
    line = 'x{a="b\\"c\\\\d\\ne, f={",g=""} 1.5e3 1790000000'
    (series,) = parse(line, {"x"})
    assert series.labels == {"a": 'b"c\\d\ne, f={', "g": ""} and series.value == 1500
    for broken in ('x{a="b} 1', "x{a=b} 1", "x one", 'x{a="b",,} 1'):
        with pytest.raises(ValueError):
            list(parse(broken, {"x"}))
    assert server_sample("<html>404</html>\n", 0, 0).engines == ()


def counted(*values: dict[str, float]) -> list[ServerSample]:
    return [ServerSample(n * S, 0, (), {"moves": value}) for n, value in enumerate(values)]


def test_counters_rise_over_restarts_and_new_engines() -> None:
    assert rise(counted({"a": 5}, {"a": 8}), "moves") == {"a": 3}
    assert rise(counted({"a": 5}, {"a": 2}, {"a": 4}), "moves") == {"a": 4}, "it began again from 0"
    assert rise(counted({"a": 5}, {"a": 5, "b": 3}), "moves") == {"a": 0, "b": 3}
    assert rise(counted({"a": 5}, {}, {"a": 9}), "moves") == {"a": 4}, "one scrape without it"
    assert rise([], "moves") == {}


def test_the_total_is_by_pool_and_by_kind_of_move() -> None:
    first, last = (server_sample(exposition(moves), at, 3_000_000) for moves, at in ((0, 0), (4, S)))
    total = server_total(Watched((first, last), (), {"status 500": 2}))
    assert total.scrapes == 2 and total.errors == {"status 500": 2} and total.scrape_max_ms == 3
    assert total.pools["decode"].running_max == 10 and total.pools["decode"].engines_most == 2
    assert total.pools["decode"].kv_share_mean == pytest.approx(0.625) and total.pools["decode"].kv_share_max == 0.75
    assert total.counted["moves"] == 4 and total.counted["preemptions"] == 0
    assert total.moves == {"drain kv": 4}


def test_power_is_integrated_and_unknown_figures_stay_unknown() -> None:
    gpus = (
        GpuSample(0, 0, "A", 0.5, 2**30, 100.0),
        GpuSample(2 * S, 0, "A", 0.9, 2**31, 300.0),
        GpuSample(0, 1, "MIG", None, None, None),
    )
    total = server_total(Watched((), gpus)).gpus
    assert total[0].energy_j == pytest.approx(400) and total[0].power_mean_w == 200
    assert total[0].busy_mean_share == pytest.approx(0.7) and total[0].memory_max_bytes == 2**31
    assert total[1].energy_j is total[1].busy_mean_share is total[1].power_mean_w is None


class FakeGpus:
    """Two looks at a GPU that is busy."""

    closed = False

    def sample(self, at_ns: int) -> list[GpuSample]:
        return [GpuSample(at_ns, 0, "fake", 1.0, 1, 50.0)]

    def close(self) -> None:
        self.closed = True


def watch(base_url: str, for_s: float = 0.35, find_gpus: Callable[[], Any] | None = None) -> Watched:
    with Watcher(Target(base_url), every_s=0.05, find_gpus=find_gpus) as watcher:
        time.sleep(for_s)
    return watcher.taken()


def test_it_scrapes_at_the_begin_each_time_and_at_the_end() -> None:
    moves = iter(range(1000))
    with FakeFerry(metrics=lambda: (200, exposition(next(moves)))) as fake:
        gpus = FakeGpus()
        seen = watch(fake.base_url, find_gpus=lambda: gpus)
    assert 3 <= len(seen.server) <= 12 and seen.errors == {} and gpus.closed
    assert len(seen.gpus) == len(seen.server) == len(fake.asked)
    assert server_total(seen).counted["moves"] == len(seen.server) - 1
    stamps = [sample.at_ns for sample in seen.server]
    assert stamps == sorted(stamps) and stamps[-1] <= time.monotonic_ns()


def test_failures_are_counted_and_do_not_end_it() -> None:
    answers = iter([(500, ""), (200, exposition()), (200, "vllm:num_requests_running{ 3")])
    with FakeFerry(metrics=lambda: next(answers, (200, exposition()))) as fake:
        seen = watch(fake.base_url)
    assert (
        seen.errors is not None and seen.errors["status 500"] == 1 and len(seen.errors) == 2 and len(seen.server) >= 2
    )


def test_a_server_without_metrics_is_asked_once() -> None:
    with FakeFerry() as fake:
        seen = watch(fake.base_url)
    assert seen == Watched((), (), {"status 404": 1}) and fake.asked == ["GET /metrics"]


def test_nobody_there_is_told_and_no_error() -> None:
    seen = watch("http://127.0.0.1:9", 0.12)
    assert seen.server == () and seen.errors is not None
    (told,) = seen.errors
    assert told.startswith("cannot reach 127.0.0.1:9/metrics")


def test_a_machine_without_the_driver_has_no_gpus() -> None:
    found = gpus_here()
    if found is None:
        assert watch("http://127.0.0.1:9", 0.0, gpus_here).gpus == ()
    else:
        assert all(sample.memory_bytes for sample in found.sample(1))
        found.close()


def test_what_was_seen_is_saved_and_read_back(tmp_path: Path) -> None:
    samples = tuple(server_sample(exposition(n), START_NS + n * S, 5) for n in range(3))
    seen = Watched(samples, (GpuSample(START_NS, 0, "A", 0.5, 1, None),), {"status 500": 1})
    made = replace(result(some(3)), watched=seen)
    saved = save(made, build(made), tmp_path)
    back = read_run(tmp_path)
    assert not saved.error and back.watched == seen.since(START_NS) and back.watched.server[2].at_ns == 2 * S
    assert back.document.server == build(made).server and len(back.records) == 3
    assert as_json(build(result(some(3))), result(some(3)))["server"] is None
