"""One update: nothing changes unless all is finite; clipping, the temperature, the moving average, precision."""

import math

import pytest
import torch
from tests import short_runs
from tests.short_runs import Watched, short, with_sum
from tests.support import tiny_config, tiny_loader, tiny_tokenizer, train_tiny

from opencoca.errors import TrainingError
from opencoca.train import loop
from opencoca.train.state import fresh_state
from opencoca.train.step import update

CPU = torch.device("cpu")
FP32 = torch.autocast("cpu", torch.bfloat16, enabled=False)
shards, light = short_runs.shards, short_runs.light


def stepped(config, act=lambda outcome: None):
    state, task = fresh_state(config, CPU), Watched(config, 1, act)
    batch = tiny_loader(config, tiny_tokenizer()).batch(0)
    return state, lambda: update(state, task, batch, config, FP32)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_with_nothing_finite_changes_nothing(shards, bad):
    """The loss alone may be infinite: its gradient needn't be."""

    def change(nats):
        if bad == "loss":
            return nats + math.inf
        return nats + (nats * 0).clamp(min=0).sqrt()  # of which the slope is infinite

    state, step = stepped(tiny_config(shards), with_sum(change))
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in state.average.items()}
    with pytest.raises(TrainingError, match="weights are unchanged"):
        step()
    assert state.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in state.average.items())
    assert step()["loss"].isfinite()  # the next batch is a good one


def test_gradients_are_clipped_and_reported_as_they_were(shards):
    free, clipped = (tiny_config(shards, optim={"clip_norm": norm}) for norm in (math.inf, 0.01))
    norms = []
    for config in (free, clipped):
        state, step = stepped(config)
        reported = step()["gradient_norm"].item()
        actual = math.sqrt(sum(p.grad.square().sum().item() for p in state.model.parameters() if p.grad is not None))
        norms.append((reported, actual))
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6) and norms[0][0] > 0.1
    assert norms[0][1] == pytest.approx(norms[0][0], rel=1e-4) and norms[1][1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("start", "end"), [(math.log(100) + 0.001, math.log(100)), (-0.5, 0.0)])
def test_the_temperature_is_clamped(shards, start, end):
    state, step = stepped(tiny_config(shards, optim={"peak_lr": 1e-6}))
    with torch.no_grad():
        state.model.log_scale.fill_(start)
    step()
    assert state.model.log_scale.item() == pytest.approx(end, abs=1e-6)


def test_the_moving_average_follows_early_and_then_slowly(shards):
    state, step = stepped(tiny_config(shards, optim={"ema_decay": 0.3, "warmup_steps": 0}))
    expected = {name: tensor.clone() for name, tensor in state.average.items()}
    for n in (1, 2, 3):
        step()
        decay = min(0.3, (1 + n) / (10 + n))
        for name, parameter in state.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, tensor in state.average.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_and_the_peak_it_is_compared_with(shards, tmp_path, monkeypatch, precision, dtype):
    asked = []
    monkeypatch.setattr(loop, "matmul_rate", lambda device, dtype, **_: asked.append(dtype) or 1e11)
    config = short(shards, optim={"steps": 3, "warmup_steps": 1}, run={"precision": precision})
    state = train_tiny(config, tmp_path / precision)
    assert set(asked) == {dtype}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in state.model.parameters())
