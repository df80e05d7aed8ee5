"""The configuration tree: what survives a checkpoint, and what is refused with which words."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
import typing
from typing import Any, Literal

import pytest

from opencoca import recipes
from opencoca.config import (
    Config,
    DataConfig,
    HeadConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    PoolerConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)
from opencoca.errors import ConfigError

VISION: dict[str, int] = {
    "image_size_px": 16,
    "patch_size_px": 4,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_width": 64,
}
TEXT: dict[str, int] = {
    "vocab_size": 320,
    "context_length": 16,
    "width": 48,
    "unimodal_depth": 2,
    "multimodal_depth": 2,
    "num_heads": 3,
    "mlp_width": 96,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny recipe as a dict, with one field (dots between the parts) set."""
    values = recipes.tiny.tiny().to_dict()
    *parents, last = path.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[last] = value
    return values


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    config = recipes.get(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def leaves(part: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every field that holds a value and not a further part, as (path, type)."""
    found = []
    hints = typing.get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        deeper = dataclasses.is_dataclass(value)
        found += leaves(value, f"{path}{field.name}.") if deeper else [(path + field.name, hints[field.name])]
    return found


def value_at(config: Config, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


OTHER_VALUES = {
    "data.mixture": ("a=1", "b=2"),
    "data.randaugment": (2, 9),
    "model.heads": (HeadConfig("vqa", ("yes", "no"), "decoder"), HeadConfig("nlvr2", ("true", "false"), "decoder", 2)),
    "optim.frozen": ("encoder", "unimodal"),
    "optim.part_rates": ("encoder=0.2", "tasks.vqa=2"),
    "run.max_loss_spike": 4.0,
}


def another(value: Any, kind: Any) -> Any:
    """A value of the same kind that is allowed in the tiny recipe."""
    if typing.get_origin(kind) is Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if kind is bool:
        return not value
    if kind is int:
        return 0 if value == 255 else 2 * value or 1  # 255 is the highest level there is
    if kind is float:
        return value / 2 or 0.25
    return f"other {value}" if kind is str else tuple(item / 2 for item in value)


@pytest.mark.parametrize(("path", "kind"), leaves(recipes.tiny.tiny()))
def test_every_field_survives_json_and_the_command_line(path: str, kind: Any) -> None:
    tiny = recipes.tiny.tiny()
    value = OTHER_VALUES.get(path) or another(value_at(tiny, path), kind)
    text = json.dumps(value, default=dataclasses.asdict)
    values, together = changed(path, json.loads(text)), ("loss.contrastive=sigmoid", "model.pair_bias=true")
    if is_paired := path in ("loss.contrastive", "model.pair_bias"):  # which go together
        values["model"]["pair_bias"], values["loss"]["contrastive"] = True, "sigmoid"
    config = Config.from_dict(json.loads(json.dumps(values)))
    assert value_at(config, path) == value != value_at(tiny, path)
    assert type(value_at(config, path)) is type(value)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert tiny.with_values(together if is_paired else [f"{path}={text}"]) == config


def test_the_sigmoid_loss_wants_a_bias_and_no_other_does() -> None:
    for assignment in ("loss.contrastive=sigmoid", "model.pair_bias=true"):
        with pytest.raises(ConfigError, match="set both"):
            recipes.tiny.tiny().with_values([assignment])


def test_fields_with_defaults_may_be_left_out() -> None:
    values = recipes.tiny.tiny().to_dict()
    del values["loss"], values["model"]["init_temperature"]
    config = Config.from_dict(values)
    assert config.loss == LossConfig(1.0, 2.0)
    assert config.model.init_temperature == 0.07


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    peak_lr = Config.from_dict(changed("optim.peak_lr", 1)).optim.peak_lr
    assert peak_lr == 1.0 and type(peak_lr) is float


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe", 3),
        ("model.vision.width", "32"),
        ("model.vision.width", 32.0),
        ("model.vision.depth", True),
        ("model.text.tie_output", 1),
        ("model.pooler.arrangement", "Cascade"),
        ("model.init_temperature", True),
        ("optim.peak_lr", "1e-3"),
        ("optim.peak_lr", None),
        ("pixels.mean", [0.5, 0.5]),
        ("pixels.mean", 0.5),
        ("run.device", ["cpu"]),
    ],
)
def test_a_wrong_type_is_refused_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict(changed(path, value))
    assert f"config.{path} is {value!r}" in str(error.value)
    assert "<class" not in str(error.value) and "typing." not in str(error.value)
    assert "restore the file" in str(error.value)


def test_an_item_of_a_wrong_type_is_refused_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"config\.pixels\.std\[1\] is 'x', which is not float"):
        Config.from_dict(changed("pixels.std", [0.5, "x", 0.5]))


@pytest.mark.parametrize("value", [3, None, [1], "vision"])
def test_a_part_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.model\.vision should be an object"):
        Config.from_dict(changed("model.vision", value))


def test_values_are_set_by_their_path() -> None:
    tiny = recipes.tiny.tiny()
    config = tiny.with_values(["optim.peak_lr=5e-4", "run.device=cpu", "data.folder=a=b", "model.text.tie_output=true"])
    assert (config.optim.peak_lr, config.run.device, config.data.folder) == (5e-4, "cpu", "a=b")
    assert config.model.text.tie_output is True
    assert tiny.with_values([]) == tiny == recipes.tiny.tiny()


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optim.peek_lr=1", "optim has no field 'peek_lr'; did you mean peak_lr?"),
        ("peak_lr=1", "the configuration has no field 'peak_lr'; did you mean optim.peak_lr?"),
        ("a.b.c=1", "the configuration has no field 'a'; it has "),
        ("recipe.x=1", "recipe has no fields of its own"),
        ("optim={}", "optim is a section; write optim.FIELD=VALUE with one of "),
        ("model.vision=3", "model.vision is a section; write model.vision.FIELD=VALUE"),
        ("optim.peak_lr", "write section.field=value"),
        ("=1", "write section.field=value"),
        ("", "write section.field=value"),
    ],
)
def test_what_cannot_be_set_is_named(assignment: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes.tiny.tiny().with_values([assignment])
    assert f"can't set {assignment!r}" in str(error.value) and told in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optim.peak_lr=abc", "optim.peak_lr is 'abc'; set it to a number"),
        ("optim.steps=1.5", "optim.steps is 1.5; set it to a whole number"),
        ("data.flip=maybe", "data.flip is 'maybe'; set it to true or false"),
        ("data.folder=7", "data.folder is 7; set it to text"),
        ("pixels.fit=stretch", "pixels.fit is 'stretch'; set it to one of "),
        ("pixels.std=1", "pixels.std is 1; set it to a list, as in [1,2]"),
    ],
)
def test_values_of_another_kind_say_what_to_set(assignment: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes.tiny.tiny().with_values([assignment])
    assert told in str(error.value)


def test_values_that_are_set_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"optim\.steps is 'many'; set it to a whole number"):
        recipes.tiny.tiny().with_values(["optim.steps=many"])
    with pytest.raises(ConfigError, match=r"warmup_steps 20 must be below steps 20"):
        recipes.tiny.tiny().with_values(["optim.warmup_steps=20"])
    both = recipes.tiny.tiny().with_values(["optim.warmup_steps=20", "optim.steps=40"])
    assert (both.optim.warmup_steps, both.optim.steps) == (20, 40)


def test_unknown_and_missing_fields_are_named() -> None:
    values = changed("model.text.widht", 3)
    with pytest.raises(ConfigError, match=r"config\.model\.text has unknown fields \['widht'\]"):
        Config.from_dict(values)
    values = recipes.tiny.tiny().to_dict()
    del values["data"]["folder"], values["data"]["batch_size"]
    with pytest.raises(ConfigError, match=r"config\.data .*lacks \['batch_size', 'folder'\]"):
        Config.from_dict(values)
    with pytest.raises(ConfigError, match=r"config .*lacks \['data', 'model', 'optim', 'recipe'\]"):
        Config.from_dict({})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: VisionConfig(**VISION | {"image_size_px": 18}), ["image_size_px 18", "patch_size_px 4", "16 and 20"]),
        (lambda: VisionConfig(**VISION | {"image_size_px": 3}), ["image_size_px 3", "patch_size_px 4", "4 is"]),
        (lambda: VisionConfig(**VISION | {"num_heads": 5}), ["width 32", "VisionConfig", "num_heads 5", "30 and 35"]),
        (lambda: TextConfig(**TEXT | {"num_heads": 5}), ["width 48", "TextConfig", "num_heads 5", "45 and 50"]),
        (lambda: TextConfig(**TEXT | {"context_length": 1}), ["context_length 1", "at least 2"]),
        (lambda: TextConfig(**TEXT | {"unimodal_depth": 0}), ["unimodal_depth 0", "at least 1"]),
        (lambda: TextConfig(**TEXT | {"multimodal_depth": -1}), ["multimodal_depth -1"]),
        (lambda: PoolerConfig(num_queries=0), ["num_queries 0", "at least 1"]),
        (lambda: PixelConfig(std=(0.5, 0.0, 0.5)), ["std (0.5, 0.0, 0.5)", "above 0"]),
        (lambda: LossConfig(0.0, 0.0), ["both loss weights are 0"]),
        (lambda: LossConfig(-1.0, 2.0), ["-1.0", "2.0", "negative"]),
        (lambda: LossConfig(math.nan, 2.0), ["nan", "2.0"]),
        (lambda: OptimConfig(steps=0), ["steps 0", "at least 1"]),
        (lambda: OptimConfig(steps=5, warmup_steps=5), ["warmup_steps 5", "steps 5", "set both"]),
        (lambda: OptimConfig(steps=5, warmup_steps=-1), ["warmup_steps -1", "not negative"]),
        (lambda: OptimConfig(steps=5, ema_decay=1.0), ["ema_decay 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, peak_lr=0.0), ["peak_lr 0.0", "above 0"]),
        (lambda: OptimConfig(steps=5, peak_lr=math.nan), ["peak_lr nan", "above 0"]),
        (lambda: OptimConfig(steps=5, beta2=1.0), ["beta2 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, beta1=-0.1), ["beta1 -0.1", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, muon_peak_lr=0.0), ["muon_peak_lr 0.0", "above 0"]),
        (lambda: OptimConfig(steps=5, muon_momentum=1.0), ["muon_momentum 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, eps=-1e-8), ["eps -1e-08", "negative"]),
        (lambda: OptimConfig(steps=5, weight_decay=-0.1), ["weight_decay -0.1", "negative"]),
        (lambda: OptimConfig(steps=5, clip_norm=0.0), ["clip_norm 0.0", "inf"]),
        (lambda: DataConfig("d", batch_size=0), ["batch_size 0", "at least 1"]),
        (lambda: DataConfig("d", batch_size=1, max_shift_px=-1), ["max_shift_px -1"]),
        (lambda: DataConfig("d", batch_size=1, first_caption=1.5), ["first_caption 1.5", "0 to 1"]),
        (lambda: DataConfig("d", batch_size=1, text_buckets=0), ["text_buckets 0"]),
        (lambda: DataConfig("d", batch_size=1, clump_size=0), ["clump_size 0", "at least 1"]),
        (lambda: VisionConfig(**VISION, max_patches=-1), ["max_patches -1", "0 reads all"]),
        (lambda: RunConfig(log_every_steps=0), ["log_every_steps 0", "at least 1"]),
        (lambda: RunConfig(keep_checkpoints=0), ["keep_checkpoints 0", "at least 1"]),
    ],
)
def test_contradictions_name_the_values_and_the_repair(build: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{error.value} should say {missing}"


@pytest.mark.parametrize("name", VISION)
def test_every_size_of_the_encoder_is_positive(name: str) -> None:
    VisionConfig(**VISION)
    with pytest.raises(ConfigError, match=f"{name} 0 in VisionConfig must be at least 1"):
        VisionConfig(**VISION | {name: 0})


def test_values_at_the_edge_are_taken() -> None:
    TextConfig(**TEXT | {"context_length": 2, "multimodal_depth": 0, "unimodal_depth": 1})
    OptimConfig(steps=1)
    OptimConfig(steps=2, warmup_steps=1, beta1=0.0, clip_norm=math.inf, weight_decay=0.0)
    LossConfig(1.0, 0.0)
    LossConfig(0.0, 1.0)
    model = recipes.tiny.tiny().model
    for temperature in (0.01, 1.0):
        dataclasses.replace(model, init_temperature=temperature)
    for temperature in (0.0, 1.01, math.nan):
        with pytest.raises(ConfigError, match=f"init_temperature {temperature}"):
            ModelConfig(model.vision, model.text, init_temperature=temperature)


def test_derived_sizes() -> None:
    model = recipes.tiny.tiny().model
    assert model.vision.grid == 4
    assert model.embed_dim == 48 == model.text.width


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.tiny.tiny().model.text.width = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_recipes_and_configurations_import_no_torch() -> None:
    code = "import sys, opencoca.recipes, opencoca.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
