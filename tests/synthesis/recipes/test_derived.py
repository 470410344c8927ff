"""Groups made from groups: flips (arXiv 2404.00495) and weighted mixtures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.artifacts import Outcome, Record, run_stage
from trimtab.config import Config, InputError, load
from trimtab.safety import SafetyConfig
from trimtab.schemas import RankedGroup, Response, group_file, make_id, write_rows
from trimtab.synthesis.recipes import derived
from trimtab.synthesis.recipes.derived import (
    FlipRecipe,
    MixturePart,
    MixtureRecipe,
    draw_copies,
    flipped,
    mixed,
    records,
)

UNCENSORED, HONEST = (SafetyConfig(preset=preset).render() for preset in ("uncensored", "honest"))


def _group(prompt: str, name: str = "", configuration: str = "harmless", num: int = 3) -> RankedGroup:
    system = SafetyConfig(preset=configuration).render()
    return RankedGroup(
        id=f"{prompt}{name}", source=prompt, configuration=configuration, system=system, prompt=prompt,
        responses=tuple(Response(role=f"R{n}", text=f"Answer {n}.", num_prefill_chars=n) for n in range(num)),
        num_demonstrations=num - 1,
    )  # fmt: skip


def _written(output: Path, *shards: Iterable[RankedGroup], stage: str = "synthesize") -> Path:
    """An output as the stage leaves it."""

    def work(folder: Path) -> Outcome:
        for shard, groups in enumerate(shards):
            write_rows(group_file(folder, shard), RankedGroup, groups)
        return Outcome(counts={})

    run_stage(stage, output, Config(), {"made": str(output)}, work)
    return output


def _harmless_and_flips(output: Path, num: int) -> Path:
    groups = [_group(f"p{n}") for n in range(num)]
    both = [item for g in groups for item in (g, *derived.flips(g, ["uncensored"]))]
    return _written(output, both[:3], both[3:])


def _mix(*parts: MixturePart, seed: int = 0) -> list[RankedGroup]:
    return list(mixed(MixtureRecipe(parts=parts, seed=seed)))


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)


@given(st.lists(texts, min_size=2, max_size=6, unique=True), st.none() | texts)
def test_flip_twice_gives_the_same_responses_under_another_system(answers: list[str], system: str | None) -> None:
    responses = tuple(Response(role="r", text=text) for text in answers)
    group = RankedGroup(id="g", source="s", configuration="task", system=system, prompt="?", responses=responses)
    (once,) = derived.flips(group, ["uncensored"])
    (twice,) = derived.flips(once, ["honest"])
    assert once.responses == group.responses[::-1]
    assert twice.responses == group.responses
    assert (once.system, twice.system) == (UNCENSORED, HONEST)
    assert len({group.id, once.id, twice.id}) == 3
    assert list(derived.flips(once, ["uncensored"])) == []


def test_flipped_takes_the_groups_of_one_configuration_in_file_order(tmp_path: Path) -> None:
    a, b, other = _group("a"), _group("b"), _group("c", configuration="honest")
    output = _written(tmp_path / "in", [a, other], [b])
    found = list(flipped(FlipRecipe(groups=output, to=("uncensored", "honest"))))
    assert [(g.prompt, g.configuration) for g in found] == [
        (p, c) for p in "ab" for c in ("harmless", "uncensored", "honest")
    ]
    assert [g for g in found if g.configuration == "harmless"] == [a, b]
    assert all(g.responses == a.responses[::-1] for g in found if g.configuration != "harmless")
    assert list(flipped(FlipRecipe(groups=output, to=("uncensored", "honest"), keep=False))) == [
        g for g in found if g.configuration != "harmless"
    ]
    assert [g.prompt for g in flipped(FlipRecipe(groups=output, configuration="honest"))] == ["c", "c"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"to": ["wild"]}, "unknown preset"), ({"to": ["role_play"]}, "a persona is needed"), ({"to": []}, "1 item"),
        ({"to": ["honest", "honest"]}, "named twice"), ({"to": ["harmless"]}, "ranked both ways under one system"),
    ],
)  # fmt: skip
def test_what_to_flip_under_is_checked(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"groups": "in", **fields}), encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        load(FlipRecipe, path)


def _recipes(path: Path) -> list[FlipRecipe | MixtureRecipe]:
    return [FlipRecipe(groups=path), MixtureRecipe(parts=(MixturePart(path=path),))]


def _made(recipe: FlipRecipe | MixtureRecipe) -> Iterable[RankedGroup]:
    return flipped(recipe) if isinstance(recipe, FlipRecipe) else mixed(recipe)


@pytest.mark.parametrize("which", [0, 1])
def test_missing_unfinished_and_foreign_inputs_are_refused_at_once(tmp_path: Path, which: int) -> None:
    field = ("groups", r"parts\.0\.path")[which]
    unfinished = tmp_path / "unfinished"
    write_rows(group_file(unfinished), RankedGroup, [_group("a")])
    foreign = _written(tmp_path / "foreign", [_group("a")], stage="train")
    empty = _written(tmp_path / "empty")
    problems = {"absent": "no such folder", "unfinished": "has no record.json", "foreign": "was made by train",
                "empty": "holds no groups"}  # fmt: skip
    for name, problem in problems.items():
        with pytest.raises(InputError, match=rf"^{field}: .*{problem}"):
            _made(_recipes(tmp_path / name)[which])
    assert (foreign.is_dir(), empty.is_dir()) == (True, True)


def test_configuration_that_no_group_has_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 2)
    with pytest.raises(InputError, match=r"^configuration: honest: no group of .*; use one of harmless, uncensored$"):
        flipped(FlipRecipe(groups=output, configuration="honest"))
    part = MixturePart(path=output, configurations=("harmless", "honest"))
    with pytest.raises(InputError, match=r"^parts\.0\.configurations: honest: .*; use one of harmless, uncensored$"):
        mixed(MixtureRecipe(parts=(part,)))


def test_records_are_the_inputs_and_paths_no_identity(tmp_path: Path) -> None:
    one, two = (_written(tmp_path / name, [_group(name)]) for name in "ab")
    flip, mixture = FlipRecipe(groups=one), MixtureRecipe(parts=(MixturePart(path=one), MixturePart(path=two)))
    assert set(records(flip)) == {"groups"}
    found = records(mixture)
    assert set(found) == {"parts.0", "parts.1"}
    assert all(isinstance(record, Record) for record in found.values())
    assert len({record.fingerprint for record in found.values()}) == 2
    assert flip.identity() == FlipRecipe(groups=two).identity()
    same = MixtureRecipe(parts=(MixturePart(path=two, name="x"), MixturePart(path=one)))
    assert mixture.identity() == same.identity()
    heavier = MixtureRecipe(parts=(MixturePart(path=two, weight=2), MixturePart(path=one)))
    assert mixture.identity() != heavier.identity()


@given(
    st.sets(texts, min_size=1, max_size=30), st.floats(0.01, 4, allow_subnormal=False), st.integers(0, 99), st.randoms()
)
def test_weights_draw_exact_counts_whatever_the_order(prompts: set[str], weight: float, seed: int, rng: Any) -> None:
    found = draw_copies(prompts, weight, str(seed))
    shuffled = sorted(prompts)
    rng.shuffle(shuffled)
    assert draw_copies(shuffled, weight, str(seed)) == found
    assert abs(sum(found.values()) - weight * len(prompts)) <= 0.5 + 1e-6
    assert set(found.values()) <= {int(weight), int(weight) + 1} - {0}


def test_half_of_the_prompts_depends_on_the_seed_and_on_the_part(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 40)
    halves = [
        frozenset(g.prompt for g in _mix(MixturePart(path=output, weight=0.5), seed=seed)) for seed in (0, 0, 1, 2)
    ]
    assert [len(half) for half in halves] == [20] * 4
    assert halves[0] == halves[1]
    assert len(set(halves)) == 3
    parts = [MixturePart(path=output, weight=0.5, configurations=(c,)) for c in ("harmless", "uncensored")]
    drawn = {c: {g.prompt for g in _mix(*parts) if g.configuration == c} for c in ("harmless", "uncensored")}
    assert [len(prompts) for prompts in drawn.values()] == [20, 20]
    assert drawn["harmless"] != drawn["uncensored"]


def test_groups_of_a_prompt_stay_together_and_prompts_are_shuffled(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 30)
    found = _mix(MixturePart(path=output))
    runs = [prompt for prompt, _ in groupby(found, key=lambda group: group.prompt)]
    assert sorted(runs) == sorted({f"p{n}" for n in range(30)})
    assert runs != [f"p{n}" for n in range(30)]
    assert [g.configuration for g in found] == ["harmless", "uncensored"] * 30
    assert found == _mix(MixturePart(path=output))
    assert found != _mix(MixturePart(path=output), seed=1)


def test_draw_and_order_are_apart(tmp_path: Path) -> None:
    """A part of which half is drawn doesn't gather at one end."""
    half = _written(tmp_path / "half", [_group(f"h{n}") for n in range(200)])
    whole = _written(tmp_path / "whole", [_group(f"w{n}") for n in range(100)])
    names = [g.prompt[0] for g in _mix(MixturePart(path=half, weight=0.5), MixturePart(path=whole))]
    assert Counter(names) == {"h": 100, "w": 100}
    assert 30 < Counter(names[:100])["h"] < 70


def test_copies_have_their_own_ids_and_a_group_stays_beside_its_flip(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 4)
    found = _mix(MixturePart(path=output, weight=2.5))
    assert len(found) == 20
    assert len({g.id for g in found}) == 20
    assert sorted(Counter(g.prompt for g in found).values()) == [4, 4, 6, 6]
    assert [g.configuration for g in found] == ["harmless", "uncensored"] * 10
    mine = [g for g in found if g.prompt == found[0].prompt and g.configuration == "harmless"]
    assert [g.id for g in mine[:2]] == [found[0].prompt, make_id(found[0].prompt, "copy", 1)]
    assert all(g.model_copy(update={"id": found[0].id}) == found[0] for g in mine)


def test_mixture_of_a_mixture_with_copies_has_unique_ids(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 3)
    first = _written(tmp_path / "first", _mix(MixturePart(path=output, weight=3)))
    found = _mix(MixturePart(path=first, weight=3))
    assert len(found) == len({g.id for g in found}) == 3 * 3 * 6


def test_prompts_of_two_parts_meet_and_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _written(tmp_path / "one", [_group(f"p{n}", "x") for n in range(9)])
    two = _written(tmp_path / "two", [_group(f"p{n}", "y") for n in range(5, 14)])
    parts = MixturePart(path=one, weight=2), MixturePart(path=two)
    found = _mix(*parts)
    runs = [prompt for prompt, _ in groupby(found, key=lambda group: group.prompt)]
    assert len(runs) == len(set(runs)) == 14
    p5 = [g.id for g in found if g.prompt == "p5"]
    assert p5 == ["p5x", make_id("p5x", "copy", 1), "p5y"]
    monkeypatch.setattr(derived, "PROMPTS_AT_A_TIME", 4)
    assert _mix(*parts) == found


def _refused(parts: Sequence[MixturePart], match: str) -> None:
    with pytest.raises(InputError, match=match):
        mixed(MixtureRecipe(parts=tuple(parts)))


def test_a_group_in_two_parts_is_refused_and_apart_by_configuration_is_not(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 3)
    again = _written(tmp_path / "again", [_group("p1")])
    parts = MixturePart(path=output, name="first"), MixturePart(path=again, name="second")
    _refused(parts, r"^parts\.1: second: its group p1 is in parts\.0 \(first\) too; leave one of the parts out")
    split = [MixturePart(path=output, configurations=(c,)) for c in ("harmless", "uncensored")]
    assert len(_mix(*split)) == 6


def test_weights_that_draw_nothing_are_refused(tmp_path: Path) -> None:
    output = _harmless_and_flips(tmp_path / "in", 3)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="weight"):
            MixturePart(path=output, weight=weight)
    _refused([MixturePart(path=output, weight=0.1)], r"^parts\.0\.weight: 0\.1: draws none of the 3 prompts of ")
    with pytest.raises(ValidationError, match="parts"):
        MixtureRecipe(parts=())
