"""The configuration tree: what survives a checkpoint, and what is refused with which words."""

import dataclasses
import functools
import json
import subprocess
import sys
import typing
from typing import Any, Literal

import pytest

from opencoca import recipes
from opencoca.config import (
    Config,
    HeadConfig,
    LossConfig,
)
from opencoca.errors import ConfigError


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


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.tiny.tiny().model.text.width = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_recipes_and_configurations_import_no_torch() -> None:
    code = "import sys, opencoca.recipes, opencoca.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
