"""Decoding steps without modules: they compute what the modules do, and know when they mustn't."""

import copy
import dataclasses
import gc
import shutil
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opencoca import recipes
from opencoca.config import GenerationConfig, ModelConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import generate
from opencoca.model import decode_native, decode_torch
from opencoca.model.coca import CoCa
from opencoca.model.decode_native import NativeLayers
from opencoca.model.decode_step import DecodeStep, prepare_to_decode
from opencoca.model.decode_torch import PACKED_FROM, Product, TorchLayers, can_pack
from opencoca.model.init import build
from opencoca.model.lora import add_lora

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}  # worst 2e-6


HERE = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.fixture
def torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_native, "library", lambda: None)


@pytest.fixture(params=["avx2", "avx512"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of these instructions computes."""
    if request.param not in HERE:
        pytest.skip(f"this processor hasn't {request.param}")
    found = decode_native.load(request.param)
    if found is None and shutil.which("cc") is None:
        pytest.skip("there was no compiler")
    assert found is not None, "setup.py compiles it: pip install --editable ."
    monkeypatch.setattr(decode_native, "library", lambda: found)


def config(**text: Any) -> ModelConfig:
    model = recipes.tiny.tiny().model
    return dataclasses.replace(model, text=dataclasses.replace(model.text, **text))


def frozen(**text: Any) -> CoCa:
    """A model whose biases and norms aren't all zeros and ones."""
    model = build(config(**text)).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


def pictures(model: CoCa, count: int) -> Tensor:
    return torch.randn(count, 5, model.config.text.width, generator=torch.Generator().manual_seed(1))


def steps(model: CoCa, step: DecodeStep | None, count: int, beams: int) -> Iterator[Tensor]:
    """Logits of six steps: one row per picture, then beams that branch and change places, then without a picture."""
    cache = model.start_decoding(pictures(model, count), 8, beams)
    cache.step = step
    head = model.caption_logits if step is None else step.head
    generator = torch.Generator().manual_seed(2)

    def ids(rows: int) -> Tensor:
        return torch.randint(1, model.config.text.vocab_size, (rows, 1), generator=generator)

    for _ in range(2):
        yield head(model.decode_next(ids(count), cache)[:, -1])
    if beams > 1:
        cache.select_beams(torch.zeros(count, beams, dtype=torch.int64))
    for _ in range(2):
        yield head(model.decode_next(ids(count * beams), cache)[:, -1])
        cache.select_beams(torch.arange(beams).flip(0).expand(count, -1))
    cache.keep_pictures(torch.arange(count) != 0)
    for _ in range(2):
        yield head(model.decode_next(ids((count - 1) * beams), cache)[:, -1])


MODELS = {
    "inside": {},
    "after": {"cross_attention": "after"},
    "norms of queries and keys": {"qk_norm": True, "cross_attention": "after"},
    "quick GELU": {"activation": "quick_gelu"},
    "tied head": {"tie_output": True},
}


def assert_steps_are_those_of_the_modules(model: CoCa, count: int, beams: int) -> DecodeStep:
    with torch.inference_mode():
        step = prepare_to_decode(model, count * beams)
        assert step is not None
        for ours, expected in zip(steps(model, step, count, beams), steps(model, None, count, beams), strict=True):
            torch.testing.assert_close(ours, expected, **CLOSE)
    return step


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("count", [2, PACKED_FROM + 2])
@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS.keys())
def test_steps_are_those_of_the_modules(torch_computes: None, text: dict[str, Any], count: int, beams: int) -> None:
    step = assert_steps_are_those_of_the_modules(frozen(**text), count, beams)
    assert isinstance(step.layers, TorchLayers) and isinstance(step.head, Product)
    assert (step.head.packed is None) == (count * beams < PACKED_FROM or not can_pack())


SHAPES = {
    "heads of 12 numbers": {},
    "of 64": {"width": 128, "num_heads": 2},
    "of 80, and an odd vocabulary": {"width": 160, "num_heads": 2, "vocab_size": 333},
    "of 20": {"width": 60, "num_heads": 3},
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("count", [2, 15])
@pytest.mark.parametrize("text", (MODELS | SHAPES).values(), ids=(MODELS | SHAPES).keys())
def test_native_steps_are_those_of_the_modules(native: None, text: dict[str, Any], count: int, beams: int) -> None:
    step = assert_steps_are_those_of_the_modules(frozen(**text), count, beams)
    assert isinstance(step.layers, NativeLayers)


def test_native_rows_do_not_depend_on_how_many_there_are(native: None) -> None:
    """Nor on the number of threads, to the last bit."""
    model = frozen(width=128, num_heads=2)
    step = prepare_to_decode(model, 48)
    assert step is not None
    ids = torch.arange(48)[:, None]

    def logits(rows: int) -> Tensor:
        with torch.inference_mode():
            cache = model.start_decoding(pictures(model, 48), 3)
            cache.keep_pictures(torch.arange(48) < rows)
            step(ids[:rows], cache)
            return step.head(step(ids[:rows] + 1, cache)[:, 0])

    threads, expected = torch.get_num_threads(), logits(48)
    try:
        for rows in (1, 2, 3, 4, 5, 7, 8, 12, 13, 17, 48):
            torch.set_num_threads(rows % 3 + 1)
            assert torch.equal(logits(rows), expected[:rows]), rows
    finally:
        torch.set_num_threads(threads)


def test_without_the_library_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENCOCA_NATIVE", "OPENCOCA_PACK"):
        with monkeypatch.context() as within:
            within.setenv(name, "0")
            assert decode_native.library.__wrapped__() is None
    monkeypatch.setattr(decode_native, "INTERFACE", decode_native.INTERFACE + 1)  # as if it were an older build
    assert decode_native.load("avx2") is None


def test_a_native_search_goes_on_with_the_weights_it_began_with(native: None) -> None:
    """A stream may wait while the model is given others: what C reads must not go with the old ones."""
    model, same = frozen(), frozen()
    step = prepare_to_decode(model, 2)
    expected = prepare_to_decode(same, 2)
    assert step is not None and expected is not None
    with torch.inference_mode():
        began, other = (one.start_decoding(pictures(one, 2), 4) for one in (model, same))
        ids = torch.ones(2, 1, dtype=torch.int64)
        step(ids, began), expected(ids, other)
    for weight in [*model.unimodal.blocks.parameters(), *model.multimodal.blocks.parameters()]:
        weight.data = torch.full_like(weight, torch.nan)
    with torch.inference_mode():
        assert torch.equal(step.layers(torch.ones(2, 48), began, None), expected.layers(torch.ones(2, 48), other, None))


def test_native_layers_are_for_float32(native: None) -> None:
    model = frozen().double()
    step = prepare_to_decode(model, 1)
    assert step is not None and isinstance(step.layers, TorchLayers)


def test_a_native_cache_that_is_full_says_so(native: None) -> None:
    model = frozen()
    step = prepare_to_decode(model, 1)
    assert step is not None
    with torch.inference_mode():
        cache = model.start_decoding(pictures(model, 1), 1)
        step(torch.ones(1, 1, dtype=torch.int64), cache)
        with pytest.raises(ValueError, match="holds 1 positions, 2 were"):
            step(torch.ones(1, 1, dtype=torch.int64), cache)


def test_rows_do_not_depend_on_how_many_there_are(torch_computes: None) -> None:
    """With packed products, to the last bit: a row's neighbours may come and go."""
    if not can_pack():
        pytest.skip("this processor has no packed products")
    model = frozen()
    step = prepare_to_decode(model, 48)
    assert step is not None
    ids = torch.arange(48)[:, None] % model.config.text.vocab_size

    def logits(rows: int) -> Tensor:
        with torch.inference_mode():
            cache = model.start_decoding(pictures(model, 48), 3)
            cache.keep_pictures(torch.arange(48) < rows)
            return step.head(step(ids[:rows], cache)[:, 0])

    expected = logits(48)
    for rows in (4, 5, 8, 17):
        assert torch.equal(logits(rows), expected[:rows]), rows


def test_without_packed_products_plain_ones_are_taken(torch_computes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_torch, "can_pack", lambda: False)
    step = assert_steps_are_those_of_the_modules(frozen(), 6, 1)
    assert isinstance(step.head, Product) and step.head.packed is None


def test_a_torch_without_these_operators_has_no_packed_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Product, "pack", lambda self: torch.ops.mkldnn.no_such_operator)
    assert not can_pack.__wrapped__()


def test_it_is_prepared_once_and_packed_when_rows_are_many(torch_computes: None) -> None:
    model = frozen()
    first = prepare_to_decode(model, 1)
    assert first is not None and isinstance(first.head, Product) and first.head.packed is None
    second = prepare_to_decode(model, PACKED_FROM)
    assert second is first and (first.head.packed is not None) == can_pack()
    packed = first.head.packed
    assert prepare_to_decode(model, 1) is first and first.head.packed is packed


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("computes", ["native", "torch_computes"])
def test_new_weights_are_noticed(request: pytest.FixtureRequest, computes: str, rows: int) -> None:
    if computes == "torch_computes":
        request.getfixturevalue(computes)
    model, other = frozen(), build(config(), seed=7).requires_grad_(False)
    before = prepare_to_decode(model, rows)
    model.load_state_dict(other.state_dict())
    after = prepare_to_decode(model, rows)
    assert after is not None and after is not before
    with torch.inference_mode():
        for ours, expected in zip(steps(model, after, rows + 1, 1), steps(other, None, rows + 1, 1), strict=True):
            torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_model_in_training_gives_back_what_was_made() -> None:
    model = frozen()
    step = prepare_to_decode(model, 6)
    assert step is not None
    held = weakref.ref(step)
    model.requires_grad_()
    del step
    assert prepare_to_decode(model, 6) is None
    gc.collect()
    assert held() is None


def test_a_model_that_is_gone_leaves_nothing_behind() -> None:
    model = frozen()
    held = weakref.ref(prepare_to_decode(model, 6))
    del model
    gc.collect()
    assert held() is None


def test_modules_that_are_none_of_ours_compute_themselves() -> None:
    lora, hooked, other_head = frozen(), frozen(), frozen()
    add_lora(lora, rank=2, alpha=2)
    handle = hooked.unimodal.blocks[0].register_forward_hook(lambda *_: None)
    setattr(other_head, "head", nn.Sequential(other_head.head))  # noqa: B010
    for model in (lora.requires_grad_(False), hooked, other_head):
        assert prepare_to_decode(model, 6) is None
    handle.remove()
    assert prepare_to_decode(hooked, 6) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert prepare_to_decode(hooked, 6) is None


def test_copies_and_saved_weights_know_nothing_of_it() -> None:
    model, plain = frozen(), frozen()
    with torch.inference_mode():
        generate(model, pictures(model, 6), SpecialIds(), GenerationConfig(beams=1, max_tokens=3))
    assert model.state_dict().keys() == plain.state_dict().keys()
    other = copy.deepcopy(model)
    with torch.inference_mode():
        assert prepare_to_decode(other, 6) is not prepare_to_decode(model, 6)
    with torch.no_grad():
        other.head.weight.zero_()
    step = prepare_to_decode(other, 6)
    assert step is not None and not step.head(torch.ones(6, 48)).any()
