"""The device catalogue: every figure has a source, nothing missing counts as zero, names are found."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from planner import Device, PlannerError, device, devices_from, read_devices
from planner.devices import FIGURES

CATALOGUE = read_devices()
WHOLE = pytest.mark.parametrize("one", CATALOGUE.devices, ids=CATALOGUE.names)
EIGHT_NUMBERS = {
    "bf16_tflops": 500,
    "fp8_tflops": 1000,
    "memory_gib": 94,
    "memory_tb_s": 3.9,
    "scale_up_gb_s": 300,
    "devices_per_node": 8,
    "pcie_gb_s": 64,
    "rdma_gb_s": 50,
}


def own(**changes: object) -> Device:
    return devices_from({"devices": {"mine": {**EIGHT_NUMBERS, **changes}}}, file="mine.yaml").device("mine")


def test_the_catalogue_spans_every_maker() -> None:
    assert {one.vendor for one in CATALOGUE.devices} >= {"nvidia", "amd", "intel", "google", "huawei"}
    assert {one.kind for one in CATALOGUE.devices} == {"gpu", "npu", "tpu", "cpu"}
    assert {"a10", "h100_sxm", "l40s", "gb300", "mi355x", "gaudi3", "ascend_910c"} <= set(CATALOGUE.names)


@WHOLE
def test_every_figure_has_a_source_or_is_refused(one: Device) -> None:
    for name in FIGURES:
        if one.has(name):
            figure = one.figure(name)
            assert figure.value > 0
            assert len(figure.source) > 10
            assert figure.confidence in {"high", "medium", "low", "derived"}
        else:
            with pytest.raises(PlannerError, match=rf"{one.name}\.{name} is missing") as refused:
                one.figure(name)
            assert refused.value.remedy


@WHOLE
def test_speeds_are_in_proportion(one: Device) -> None:
    """A slip of a digit or a sparse figure would break these."""
    assert one.bf16_tflops is not None
    for narrow in (one.fp8_tflops, one.int8_tflops):
        if narrow is not None and narrow.value > 200:  # B300 and GB300 have hardly any int8
            assert 0.95 <= narrow.value / one.bf16_tflops.value <= 4.1
    flops_per_byte = one.peak_flops("bf16") / one.memory_bytes_per_s
    assert 10 < flops_per_byte < 700


def test_known_figures_in_si_units() -> None:
    h100 = device("h100_sxm")
    assert h100.peak_flops("bf16") == h100.peak_flops("fp16") == 989e12
    assert h100.peak_flops("fp8") == 1978e12
    assert h100.memory_bytes_per_s == 3.35e12
    assert h100.scale_up_bytes_per_s == h100.peer_bytes_per_s == 450e9
    assert h100.memory_bytes == round(79.1 * 1024**3)
    assert h100.node_devices == 8
    assert device("gb200").node_devices == 72


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H100", "h100_sxm"),
        ("h100-80gb", "h100_sxm"),
        ("NVIDIA B200-SXM-180GB", "b200_sxm"),
        ("NVIDIA GB300", "gb300"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_server"),
        ("AMD Instinct MI325X 256GB HBM3e", "mi325x"),
        ("a100-80gb", "a100_sxm"),
        ("RTX4090", "rtx_4090"),
        ("Ascend 910B", "ascend_910b3"),
    ],
)
def test_aliases(name: str, found: str) -> None:
    assert CATALOGUE.device(name).name == found


def test_no_name_means_two_devices() -> None:
    for one in CATALOGUE.devices:
        for name in (one.name, *one.aliases):
            assert CATALOGUE.device(name) is one


@pytest.mark.skipif("FERRY_DATA" not in os.environ, reason="set FERRY_DATA to the folder of the research data")
def test_every_gpu_that_was_measured_in_public_is_found() -> None:
    with (Path(os.environ["FERRY_DATA"]) / "published_perf.csv").open(encoding="utf-8") as file:
        names = {row["gpu"] for row in csv.DictReader(file)} - {"[MAXSUN] MS-Intel Arc Pro B60 Dual 48G Turbo"}
    assert names
    for name in names:
        CATALOGUE.device(name)


@pytest.mark.parametrize(("name", "near"), [("h100_smx", "h100_sxm"), ("l40", "l40s"), ("mi300", "mi300x")])
def test_an_unknown_device_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(PlannerError) as refused:
        device(name)
    assert near in refused.value.remedy
    assert refused.value.value == name


def test_a_type_that_the_hardware_lacks() -> None:
    with pytest.raises(PlannerError, match="has none") as refused:
        device("a100_sxm").peak_flops("fp8")
    assert refused.value.remedy == "use bf16 or int8"
    with pytest.raises(PlannerError, match="no device multiplies"):
        device("a100_sxm").peak_flops("fp7")
    assert not device("a100_sxm").multiplies("fp8")


def test_a_figure_that_nobody_gave() -> None:
    with pytest.raises(PlannerError, match="nobody has given this figure"):
        _ = device("tpu_v5e").rdma_bytes_per_s


def test_without_a_fabric_peers_talk_over_pcie() -> None:
    l40s = device("l40s")
    assert not l40s.has_scale_up
    assert l40s.peer_bytes_per_s == l40s.pcie_bytes_per_s == 32e9
    with pytest.raises(PlannerError, match="has none"):
        _ = l40s.scale_up_bytes_per_s


def test_eight_numbers_make_a_device() -> None:
    mine = own()
    assert mine.peak_flops("fp8") == 1e15
    assert mine.memory_bytes == 94 * 1024**3
    assert mine.bf16_tflops is not None
    assert mine.bf16_tflops.confidence == "stated"
    with pytest.raises(PlannerError, match=r"mine\.fp4_tflops is missing"):
        mine.peak_flops("fp4")


def test_own_devices_stand_before_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("devices: {h100_sxm: {bf16_tflops: 800, memory_gib: 79, memory_tb_s: 3}}", encoding="utf-8")
    devices = read_devices(path)
    assert devices.device("h100_sxm").peak_flops("bf16") == 800e12
    assert devices.device("l40s") == CATALOGUE.device("l40s")


@pytest.mark.parametrize(
    ("changes", "key", "word"),
    [
        ({"memory_gb": 80}, "memory_gb", "memory_gib"),
        ({"bf16_tflops": -1}, "bf16_tflops", "greater than 0"),
        ({"bf16_tflops": 0}, "bf16_tflops", "greater than 0"),
        ({"bf16_tflops": "fast"}, "bf16_tflops", "valid number"),
        ({"bf16_tflops": True}, "bf16_tflops", "valid number"),
        ({"bf16_tflops": float("nan")}, "bf16_tflops", "finite"),
        ({"devices_per_node": 1.5}, "devices_per_node", "whole"),
        ({"lacks": ["fp8_tflops"]}, "fp8_tflops", "lacks"),
        ({"pcie_gb_s": [64, "nowhere", "high"]}, "pcie_gb_s", "no such source"),
        ({"mig": "none_such"}, "mig", "no such table"),
    ],
)
def test_odd_device_files_are_refused(changes: dict[str, object], key: str, word: str) -> None:
    with pytest.raises(PlannerError) as refused:
        own(**changes)
    assert key in refused.value.key
    assert word in f"{refused.value} {refused.value.remedy}"
    assert refused.value.file == "mine.yaml"


def test_a_mig_slice() -> None:
    h100 = device("h100_sxm")
    part = device("h100_sxm:1g.10gb")
    assert part.whole == "h100_sxm"
    assert part.per_device == 7
    assert part.peak_flops("bf16") == pytest.approx(h100.peak_flops("bf16") / 7)
    assert part.memory_bytes == pytest.approx(h100.memory_bytes / 8, abs=1)
    assert part.node_devices == 1
    assert device("h100_sxm:3g.40gb").per_device == 2
    with pytest.raises(PlannerError, match="no such fraction"):
        device("h100_sxm:1g.11gb")


@WHOLE
def test_fractions_never_hold_more_than_the_whole(one: Device) -> None:
    specs = ["1/2", "1/7", *(profile.name for profile in (one.mig.profiles if one.mig else ()))]
    for spec in specs:
        part = one.fraction(spec)
        assert part.per_device * part.memory_bytes <= one.memory_bytes + part.per_device
        assert part.per_device * part.peak_flops("bf16") <= one.peak_flops("bf16") * (1 + 1e-9)


@pytest.mark.parametrize("name", ["l4:1g.5gb", "l4:0.5", "l4:1/0", "h100_sxm:1/2:1/2", "l4:"])
def test_odd_fractions_are_refused(name: str) -> None:
    with pytest.raises(PlannerError, match="no such fraction"):
        device(name)


def test_a_fraction_is_not_cut_again() -> None:
    with pytest.raises(PlannerError, match="fraction already"):
        device("l4:1/2").fraction("1/2")
