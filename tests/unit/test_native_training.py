"""Attention and GELU in C, for training: what torch computes, to float32, and always the same bits."""

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca import recipes
from opencoca.model import attention_native, gelu_native, native
from opencoca.model.attention import Attention
from opencoca.model.attention_native import MOST, Span, attend
from opencoca.model.blocks import Mlp
from opencoca.model.init import build
from opencoca.model.runs import Run

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}  # worst 3e-6
HERE = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.fixture(params=["avx2", "avx512"])
def in_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of these instructions computes."""
    if request.param not in HERE:
        pytest.skip(f"this processor hasn't {request.param}")
    for module in (attention_native, gelu_native):
        found = module.load(request.param)
        if found is None and shutil.which("cc") is None:
            pytest.skip("there was no compiler")
        assert found is not None, "setup.py compiles it: pip install --editable ."
        monkeypatch.setattr(module, "library", lambda found=found: found)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected(q_XD: Tensor, kv_YE: Tensor, num_heads: int, spans: list[Span], causal: bool) -> Tensor:
    """By torch's attention in float64, sequence by sequence."""
    read, query, key = [], 0, 0
    for span in spans:
        for _ in range(span.sequences):
            q_TD, kv_SE = q_XD[query : query + span.queries], kv_YE[key : key + span.keys]
            heads = (part.unflatten(1, (num_heads, -1)).transpose(0, 1) for part in (q_TD, *kv_SE.chunk(2, dim=1)))
            read.append(F.scaled_dot_product_attention(*heads, is_causal=causal).transpose(0, 1).flatten(1))
            query, key = query + span.queries, key + span.keys
    return torch.cat(read)


@pytest.mark.parametrize(
    ("spans", "num_heads", "causal"),
    [
        ([Span(5, 18, 18)], 3, False),
        ([Span(2, 1, 1)], 1, False),
        ([Span(3, 7, 2), Span(1, 2, 5)], 2, False),  # fewer keys than are compared at once
        ([Span(2, 4, 4), Span(0, 5, 5), Span(3, 9, 9), Span(1, 17, 17)], 2, True),
        ([Span(1, MOST, MOST)], 1, False),
        ([Span(1, MOST, MOST), Span(1, 1, 1)], 2, True),
        ([Span(2, 5, 33)], 1, False),
    ],
)
def test_attention_is_torchs(in_c: None, spans: list[Span], num_heads: int, causal: bool) -> None:
    queries = sum(span.sequences * span.queries for span in spans)
    keys = sum(span.sequences * span.keys for span in spans)
    q, kv = numbers(queries, 64 * num_heads), 2 * numbers(keys, 128 * num_heads, seed=1)
    weight = numbers(queries, 64 * num_heads, seed=2)
    inputs = [part.requires_grad_() for part in (q, kv)]
    exact = [part.detach().double().requires_grad_() for part in (q, kv)]
    assert attention_native.attends(q, kv, num_heads) and attention_native.are_few(spans, causal)
    found = attend(q, kv, num_heads, spans, causal)
    wanted = expected(*exact, num_heads, spans, causal)
    torch.testing.assert_close(found.double(), wanted, **CLOSE)
    found_gradients = torch.autograd.grad((found * weight).sum(), inputs)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), exact)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one.double(), other, **CLOSE)


def test_attention_of_large_scores_overflows_nowhere(in_c: None) -> None:
    q, kv = (300 * numbers(6, 64)).requires_grad_(), (300 * numbers(6, 128, seed=1)).requires_grad_()
    found = attend(q, kv, 1, [Span(1, 6, 6)], causal=True)
    torch.testing.assert_close(found, expected(q, kv, 1, [Span(1, 6, 6)], causal=True), rtol=1e-5, atol=1e-3)
    assert all(part.isfinite().all() for part in torch.autograd.grad(found.sum(), [q, kv]))


def test_bits_depend_neither_on_threads_nor_on_other_rows(in_c: None, threads: Callable[[int], None]) -> None:
    def computed(rows: int) -> list[Tensor]:
        q, kv = numbers(rows * 5, 64).requires_grad_(), numbers(rows * 5, 128, seed=1).requires_grad_()
        read = attend(q, kv, 2, [Span(rows, 5, 5)], causal=True)
        return [read.detach(), *torch.autograd.grad(read.square().sum(), [q, kv])]

    def activated(rows: int) -> list[Tensor]:
        linear = nn.Linear(8, 37)
        nn.init.constant_(linear.bias, 0.3)
        x = numbers(rows, 8).requires_grad_()
        with torch.no_grad():
            linear.weight.copy_(numbers(37, 8, seed=3))
        out = gelu_native.linear_gelu(linear, x)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, linear.bias])]

    threads(1)
    of_many, of_one = computed(7), computed(1)
    for one, many in zip(of_one, of_many, strict=True):
        assert torch.equal(one, many[: len(one)])
    gelu = activated(70)
    for count in (2, 3, 4):
        threads(count)
        for computing, before in ((functools.partial(computed, 7), of_many), (functools.partial(activated, 70), gelu)):
            assert all(itertools.starmap(torch.equal, zip(computing(), before, strict=True))), count


@pytest.mark.parametrize("shape", [(2304, 768), (3, 5), (1, 1, 16), (2, 9, 37), (0, 8)])
def test_gelu_is_torchs(in_c: None, shape: tuple[int, ...]) -> None:
    linear, x = nn.Linear(6, shape[-1]), 2 * numbers(*shape[:-1], 6)
    x.requires_grad_()
    weight = numbers(*shape, seed=4)
    assert gelu_native.computes(linear, x)
    inputs = [x, linear.weight, linear.bias]
    found, wanted = gelu_native.linear_gelu(linear, x), F.gelu(linear(x))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    found_gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for one, other in zip(found_gradients, torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=2e-6 * torch.cat([torch.ones(1), other.abs().flatten()]).max().item()
        )


def test_gelu_of_any_number_is_torchs(in_c: None) -> None:
    values = torch.tensor([0.0, 1e-30, 5.0, 9.5, 20.0, 1e4, 1e20, float("nan")])
    x = torch.cat([values, -values])[:, None].requires_grad_()
    linear = nn.Linear(1, 1)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    found, wanted = gelu_native.linear_gelu(linear, x), F.gelu(x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6, equal_nan=True)
    found_gradient, wanted_gradient = (torch.autograd.grad(y.nansum(), x)[0] for y in (found, wanted))
    usual = x.abs() < 1e10
    torch.testing.assert_close(found_gradient[usual], wanted_gradient[usual], rtol=1e-6, atol=2e-6)


def test_a_model_trains_alike_with_and_without(in_c: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, poolers and both decoder halves take C where they can, and their gradients are torch's."""
    calls: list[str] = []
    for module, name in ((attention_native, "attend"), (gelu_native, "linear_gelu")):
        real = getattr(module, name)

        def counted(*given: Any, real: Any = real, name: str = name) -> Tensor:
            calls.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, counted)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(3, 3, 48, 48, generator=generator)
    ids = torch.randint(4, 100, (3, 9), generator=generator)

    def gradients() -> list[Tensor]:
        model = build(recipes.get("openmoji").model, seed=1)
        features = model.encode_image(pixels)
        text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        logits = model.decode(text.tokens, features.tokens)
        loss = (features.embed @ text.embed.T).square().sum() + logits.logsumexp(-1).mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    found = gradients()
    assert calls.count("attend") >= 8 and calls.count("linear_gelu") == 8
    for module in (attention_native, gelu_native):
        monkeypatch.setattr(module, "library", lambda: None)
    taken = len(calls)
    wanted = gradients()
    assert len(calls) == taken
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * max(1.0, other.abs().max().item()))


def test_runs_of_captions_go_in_one_call(in_c: None, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = Attention(64, 2)
    runs = (Run(0, 2, 3), Run(2, 5, 6))
    x_XD, pictures_BSD = numbers(2 * 3 + 3 * 6, 64), numbers(5, 4, 64, seed=1)

    def computed() -> list[Tensor]:
        return [attention.within(x_XD, runs, causal=True), attention.read(x_XD, pictures_BSD, runs)]

    found = computed()
    assert all(type(part.grad_fn.next_functions[1][0]).__name__ == "_AttendBackward" for part in found)
    monkeypatch.setattr(attention_native, "library", lambda: None)
    for one, other in zip(found, computed(), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_what_c_is_not_for(in_c: None) -> None:
    q, kv = numbers(4, 64).requires_grad_(), numbers(4, 128).requires_grad_()
    taken = functools.partial(attention_native.attends, num_heads=2)
    assert taken(q, kv)
    with torch.no_grad():
        assert not taken(q, kv)
    assert not taken(q.detach(), kv.detach())
    assert not taken(q.double(), kv.double())
    assert not attention_native.attends(q, kv, num_heads=4)  # heads of 16
    are_few = attention_native.are_few
    assert are_few([Span(9, MOST, MOST)], causal=True) and are_few([Span(9, 3, 4)], causal=False)
    assert not are_few([Span(1, 4, 4), Span(1, MOST + 1, 4)], causal=False)
    assert not are_few([Span(1, 4, MOST + 1)], causal=False)
    assert not are_few([Span(1, 3, 4)], causal=True)
    mlp, x = Mlp(8, 16), numbers(2, 8)
    assert gelu_native.computes(mlp.up, x)
    assert not gelu_native.computes(mlp.up.double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not gelu_native.computes(nn.Linear(8, 16), x)
    assert not gelu_native.computes(nn.Linear(8, 16, bias=False), x)
    assert not gelu_native.computes(nn.Linear(8, 16).requires_grad_(False), x)


def test_without_the_libraries_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as within:
        within.setenv("OPENCOCA_NATIVE", "0")
        assert native.instructions() is None
        assert attention_native.library.__wrapped__() is None
        assert gelu_native.library.__wrapped__() is None
    for module in (attention_native, gelu_native):
        monkeypatch.setattr(module, "INTERFACE", module.INTERFACE + 1)  # as if it were an older build
        assert module.load("avx2") is None
