"""Configurations: the order of sources, what a user's mistake says, and what counts as identity."""

from __future__ import annotations

import json
import pickle
import re
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from trimtab.config import Config, InputError, load, placement

ROOT = Path(__file__).parent.parent


class Inner(Config):
    depth: int = 1
    where: str = placement("here")


class Square(Config):
    type: Literal["square"] = "square"
    side: int = 2


class Circle(Config):
    type: Literal["circle"] = "circle"
    radius: float = 1.0


class Outer(Config):
    name: str
    count: int = Field(3, ge=1)
    rate: float = 1e-4
    folder: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    hidden: Inner = placement(Inner())
    shape: Annotated[Square | Circle, Field(discriminator="type")] = Square()


class Rated(Config):
    rate: float = 1
    share: float = 0.5


def test_a_whole_number_is_one_recipe_however_it_was_written() -> None:
    read_back = Rated.model_validate({"rate": 1.0, "share": 0.5})
    assert json.dumps(Rated().identity()) == json.dumps(read_back.identity()) == '{"rate": 1, "share": 0.5}'


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    path = _write(tmp_path, "name: file\ncount: 5\ninner: {depth: 7, where: there}\n")
    config = load(Outer, path, ["count=6", "inner.depth=8"])
    assert (config.name, config.count, config.rate) == ("file", 6, 1e-4)
    assert (config.inner.depth, config.inner.where) == (8, "there")


def test_override_types_are_yaml(tmp_path: Path) -> None:
    config = load(Outer, _write(tmp_path, "name: x\n"), ["sizes=[4,5,6]", "rate=3e-4", "folder=null"])
    assert (config.sizes, config.rate, config.folder) == ((4, 5, 6), 3e-4, None)


def test_numbers_in_scientific_notation_are_numbers_in_the_file_too(tmp_path: Path) -> None:
    assert load(Outer, _write(tmp_path, "name: x\nrate: 5e-6\n")).rate == 5e-6


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(Inner, _write(tmp_path, "# nothing\n")) == Inner()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["name=x", "coutn=2"], r"^coutn: 2: unknown key; did you mean count\?$"),
        (["name=x", "inner.dpeth=2"], r"^inner.dpeth: 2: unknown key; did you mean depth\?$"),
        (["name=x", "depth=2"], r"^depth: 2: unknown key; did you mean inner.depth\?$"),
        (["name=x", "inner.coutn=2"], r"^inner.coutn: 2: unknown key; did you mean count\?$"),
        (["name=x", "zzz=2"], r"^zzz: 2: unknown key; remove it; --dry-run shows the keys$"),
        ([], r"^name: missing: a value is needed; add it to the file or --set name=\.\.\.$"),
        (["name=x", "count=0"], r"^count: 0: Input should be greater than or equal to 1; "),
        (["name=x", "count=many"], r"^count: many: Input should be a valid integer"),
        (["name"], r"^--set: name: is not key=value; write it as --set section\.key=value$"),
        (["=x"], r"^--set: =x: is not key=value"),
        (["name=x", "sizes=[1"], r"^--set: name=x sizes=\[1: .*; check the keys and the quoting$"),
        (["name=x", "shape.type=triangle"], r"^shape: .*triangle.*; "),
    ],
)
def test_mistakes_are_one_line_that_names_field_value_and_remedy(overrides: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        load(Outer, None, overrides)
    assert re.search(line, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: [1\n", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"- a\n- b\n", "is not a mapping"),
        (b"just text", "is not a mapping"),
    ],
)  # fmt: skip
def test_file_that_is_no_configuration(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^--config: .*config\.yaml: {problem}"):
        load(Outer, path)


def test_missing_file_and_folder_instead_of_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError, match=r"^--config: .*: no such file; give the path of a YAML file$"):
            load(Outer, path)


def test_problem_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^coutn: 2: unknown key \(in .*config\.yaml\); did you mean count\?$"):
        load(Outer, _write(tmp_path, "name: x\ncoutn: 2\n"))


def test_default_variant_may_leave_its_type_out() -> None:
    assert load(Outer, None, ["name=x", "shape.side=9"]).shape == Square(side=9)
    assert load(Outer, None, ["name=x", "shape.type=circle", "shape.radius=3"]).shape == Circle(radius=3)


def test_fields_of_another_variant_are_unknown() -> None:
    with pytest.raises(InputError, match="radius: 3: unknown key"):
        load(Outer, None, ["name=x", "shape.radius=3"])


def test_placement_is_no_identity_and_everything_else_is() -> None:
    config = Outer(name="x")
    assert config.identity() == {
        "name": "x", "count": 3, "rate": 1e-4, "folder": None, "sizes": [1, 2], "inner": {"depth": 1},
        "shape": {"type": "square", "side": 2},
    }  # fmt: skip
    moved = config.model_copy(update={"hidden": Inner(depth=9), "inner": Inner(where="elsewhere")})
    assert moved.identity() == config.identity()
    assert config.model_copy(update={"inner": Inner(depth=2)}).identity() != config.identity()


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer(name="x").count = 4  # type: ignore[misc]


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="$"), max_size=30)
outers = st.builds(
    Outer, name=plain_text, count=st.integers(1, 10**9), rate=st.floats(allow_nan=False, allow_infinity=False),
    folder=st.none() | st.sampled_from([Path("a/b"), Path("/c d")]), sizes=st.lists(st.integers()).map(tuple),
    shape=st.builds(Square, side=st.integers()) | st.builds(Circle, radius=st.floats(0, 9)),
)  # fmt: skip


@given(outers)
def test_dumped_yaml_loads_as_the_same_configuration(tmp_path_factory: pytest.TempPathFactory, config: Outer) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(config.dump_yaml(), encoding="utf-8")
    assert load(Outer, path) == config


@given(field=plain_text, value=st.text() | st.integers() | st.lists(st.text()))
def test_messages_are_always_one_line_of_bounded_length(field: str, value: object) -> None:
    text = str(InputError(field, value, "is wrong", "mend it"))
    assert len(text.splitlines()) == 1
    assert len(text) < 230


def test_message_comes_back_whole_from_another_process() -> None:
    error = InputError("tasks", "x", "is wrong", "mend it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (InputError, str(error))


CLASSES = {
    "synthe": ("trimtab.synthesis.run", "SynthesisConfig"),
    "train": ("trimtab.training.run", "TrainingConfig"),
    "evaluate_prefill": ("trimtab.evaluation.prefill", "PrefillConfig"),
    "evaluate_configurable": ("trimtab.evaluation.configurable", "ConfigurableConfig"),
    "evaluate_ability": ("trimtab.evaluation.ability", "AbilityConfig"),
    "evaluate_retention": ("trimtab.evaluation.retention", "RetentionConfig"),
    "report": ("trimtab.evaluation.report", "ReportConfig"),
    "serve": ("trimtab.serving", "ServeConfig"),
    "demo": ("trimtab.pipeline", "PipelineConfig"),
    "pipeline": ("trimtab.pipeline", "PipelineConfig"),
}
SHIPPED = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configuration_loads_in_its_class(path: Path) -> None:
    owners = [name for name in CLASSES if path.name.startswith(name)]
    assert owners, f"{path.name} starts with none of {', '.join(CLASSES)}"
    module, name = CLASSES[owners[0]]
    config = load(getattr(import_module(module), name), path)
    assert load(type(config), None, []) != config if name != "SynthesisConfig" else config.output


def test_shipped_serve_configuration_loads() -> None:
    from trimtab.serving import ServeConfig

    shipped = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    for application in shipped["applications"]:
        ServeConfig.model_validate(application["args"])
    assert shipped["http_options"]["host"] == "127.0.0.1"


PRESETS = sorted((ROOT / "jobs" / "configs" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_training_preset_loads_and_its_settings_go_together(path: Path) -> None:
    from trimtab.training.config import TrainingConfig
    from trimtab.training.run import refuse_what_does_not_fit

    config = load(TrainingConfig, path, ["output=x", "data=[y]"])
    refuse_what_does_not_fit(config, None)
    assert path.read_text(encoding="utf-8").startswith("# ")
    if config.load_in_4bit:  # the published CST settings (arXiv 2404.00495)
        assert config.lora is not None
        assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout, config.beta) == (24, 48, 0.05, 0.1)
        assert len(config.lora.target_modules) == 7


SYNTHESES = sorted((ROOT / "jobs" / "configs" / "synthesize").glob("*.yaml"))


@pytest.mark.parametrize("path", SYNTHESES, ids=lambda path: path.stem)
def test_synthesis_preset_loads(path: Path) -> None:
    from trimtab.synthesis.config import SynthesisConfig

    config = load(SynthesisConfig, path)
    assert config.recipe.type in path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")


EVALUATIONS = sorted((ROOT / "jobs" / "configs" / "evaluate").glob("*.yaml"))


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_preset_loads(path: Path) -> None:
    from trimtab.evaluation.ability import AbilityConfig
    from trimtab.evaluation.calibrate import CalibrationConfig
    from trimtab.evaluation.configurable import ConfigurableConfig, wordings
    from trimtab.evaluation.prefill import PrefillConfig, refuse_what_does_not_fit

    assert path.read_text(encoding="utf-8").startswith("# ")
    if path.stem.startswith("configurable"):
        config = load(ConfigurableConfig, path, ["output=x"])
        assert len(wordings(config)) > 2 * len(config.pairs)
        assert len(config.models) == 3
    elif path.stem.startswith(("injection", "robustness")):
        _load_attacked(path)
    elif path.stem == "ability":
        assert load(AbilityConfig, path, ["output=x"]).models
    elif path.stem.startswith("judge"):
        assert load(CalibrationConfig, path, ["output=x"]).half == path.stem.removeprefix("judge_")
    else:
        prefill = load(PrefillConfig, path, ["output=x"])
        refuse_what_does_not_fit(prefill)
        assert prefill.models or re.fullmatch(r"[\w.-]+/[\w.-]+", prefill.model)


def _load_attacked(path: Path) -> None:
    from trimtab.evaluation import injection, robustness
    from trimtab.evaluation.attacks import read_attacks

    if path.stem.startswith("injection"):
        config = load(injection.InjectionConfig, path, ["output=x"])
        injection.refuse_own_kinds(read_attacks(config.attacks, injection.SHIPPED), config)
        assert len(config.models) == 2 or (config.engine.type == "openai" and config.engine.configurations == "safety")
    else:
        graded = load(robustness.RobustnessConfig, path, ["output=x"])
        robustness.refuse_what_does_not_fit(read_attacks(graded.attacks, robustness.SHIPPED), graded)


def test_some_configuration_ships() -> None:
    assert len(EVALUATIONS) >= 12
    assert len(PRESETS) >= 12
    assert len(SYNTHESES) >= 4
    assert "demo.yaml" in [path.name for path in SHIPPED]


def test_problem_inside_a_union_names_the_users_key_without_the_variant() -> None:
    from trimtab.synthesis.config import SynthesisConfig

    with pytest.raises(InputError, match=r"^engine\.base_url: missing: .*--set engine\.base_url="):
        load(SynthesisConfig, None, ["output=x", "engine.type=openai", "engine.model=m"])
