"""The simulation behind docs/scaling.md, against sums that one can do by hand."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from opencoca import recipes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scaling_model")


def test_rings_send_all_but_one_part_in_as_many_hops(model):
    assert model.ring_s(8e9, 4, 1e9, 0.5) == pytest.approx(6.0 + 1.5)
    assert model.ring_s(8e9, 1, 1e9, 0.5) == 0.0


def test_each_mode_sends_what_it_must(model):
    cluster = model.Cluster(gpus_per_node=2, nvlink_gb_s=10.0, infiniband_gb_s=1.0, reached=1.0, hop_s=0.0)
    weights = 1e9
    assert model.exchange_s(cluster, "ddp", 2, weights, 1, 1, 4) == pytest.approx(2 * 0.5 * 4 / 10)
    assert model.exchange_s(cluster, "ddp", 4, weights, 1, 1, 4) == pytest.approx(2 * 0.75 * 4 / 2)
    assert model.exchange_s(cluster, "fsdp", 4, weights, 1, 1, 4) == pytest.approx(0.75 * (2 * 2 + 4) / 2)
    assert model.exchange_s(cluster, "fsdp", 4, weights, 6, 3, 4) == pytest.approx(0.75 * (9 * 2 + 3 * 4) / 2)
    inside, between = 0.5 * (2 * 2 + 4) / 10, 2 * 0.5 * 4 / 2 / 1
    assert model.exchange_s(cluster, "hsdp", 4, weights, 1, 1, 4) == pytest.approx(inside + between)


def test_more_gpus_are_faster_but_never_beyond_the_ideal(model):
    cluster, config = model.Cluster(), recipes.get("paper.base")
    steps = [model.best(cluster, config, "ddp", gpus) for gpus in (128, 512, 1024)]
    assert [one.step_s for one in steps] == sorted((one.step_s for one in steps), reverse=True)
    assert all(0 < one.efficiency < 1 and one.memory_gb <= cluster.memory_gb for one in steps)
    assert steps[0].efficiency > steps[2].efficiency
    small = dataclasses.replace(cluster, memory_gb=8.0)
    assert model.best(small, recipes.get("paper.coca"), "ddp", 1024) is None, "a copy and its optimizer don't fit"


def test_the_compute_part_agrees_with_measured_steps(model):
    found = model.checked()
    assert abs(found["largest_difference_of_a_ratio_of_step_times"]) < 0.1
    assert 0.3 < found["share_of_the_processors_matmul_rate"] < 1
