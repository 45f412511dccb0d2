"""Every example document in configs/ is read as a user would read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import read_devices, read_prices, read_slo, read_workload, traffic_under

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["chat", "rag", "reasoning"])
def test_the_slo_and_its_workload_agree(name: str) -> None:
    slo = read_slo(CONFIGS / f"slo.{name}.yaml")
    traffic = traffic_under(slo, read_workload(CONFIGS / f"workload.{name}.yaml"))
    assert name in slo.classes
    for stream in traffic.streams:
        assert traffic.mean_rate_rps(stream) == slo.of(stream).rate_rps
    sample = traffic.sample(1, 2000)
    assert len(sample) == 2000
    assert sample.isl.min() > 0


def test_no_example_is_left_untested() -> None:
    assert {path.name for path in CONFIGS.glob("slo.*.yaml")} == {f"slo.{n}.yaml" for n in ("chat", "rag", "reasoning")}
    assert {path.name.split(".")[1] for path in CONFIGS.glob("workload.*.yaml")} == {"chat", "rag", "reasoning"}


def test_the_chat_lengths_are_those_of_the_trace_they_name() -> None:
    sample = read_workload(CONFIGS / "workload.chat.yaml").sample(1, 20_000)
    assert sample.isl.mean() == pytest.approx(1155, rel=0.03)
    assert sample.osl.mean() == pytest.approx(211, rel=0.03)


def test_an_own_device_with_an_own_price() -> None:
    device = read_devices(CONFIGS / "device.own.yaml").device("my_gpu")
    price = read_prices(CONFIGS / "prices.own.yaml").price(device, "spot", region="eu-west")
    assert (price.usd_per_hour, price.high_usd_per_hour) == (0.9, 1.4)
