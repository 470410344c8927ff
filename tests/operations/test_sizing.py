"""``trimtab plan``: published sizes and formulas by hand, what a finished run gives, and one line for bad input."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.artifacts import Record
from trimtab.config import InputError, load
from trimtab.operations.sizing import PlanConfig, plan, tables
from trimtab.operations.sizing.assumptions import GIVEN
from trimtab.operations.sizing.config import CostNumbers, DiskNumbers, LimitNumbers, TrainingNumbers
from trimtab.operations.sizing.limits import limits
from trimtab.operations.sizing.memory import (
    HEAD_CHUNK,
    activations,
    fit,
    gpus_of_an_engine,
    model_states,
    smallest_card,
    working_memory,
)
from trimtab.operations.sizing.shapes import PRESETS, shape_of
from trimtab.operations.sizing.storage import stored
from trimtab.operations.sizing.work import cost, hours, rate_of, training_seconds, work_of

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "tests" / "bench" / "results" / "cluster_limits.json"
B = 10**9


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("0.5b", 494_032_768), ("1.5b", 1_543_714_304), ("3b", 3_085_938_688), ("7b", 6_738_415_616),
        ("8b", 8_030_261_248), ("13b", 13_015_864_320), ("32b", 32_763_876_352), ("70b", 68_976_648_192),
    ],
)  # fmt: skip
def test_sizes_are_those_that_the_authors_publish(size: str, published: int) -> None:
    assert PRESETS[size].num_parameters == published


def test_a_folder_counts_its_weights_and_its_config_gives_the_same(tiny_model: Path, tmp_path: Path) -> None:
    counted = shape_of(str(tiny_model))
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    reckoned = shape_of(str(tmp_path))
    assert counted.counted is not None
    assert reckoned.counted is None
    assert counted.num_parameters == reckoned.num_parameters


def test_zero_divides_what_the_paper_divides() -> None:
    """The worked example of the ZeRO paper (figure 1): 7.5B parameters, 64 GPUs, 120, 31.4, 16.6 and 1.9 GB."""
    found = [model_states(7.5 * B, 7.5 * B, stage, 64) / B for stage in (0, 1, 2, 3)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


def test_adapters_have_optimizer_states_and_the_base_has_none() -> None:
    assert model_states(7 * B, 0.1 * B, 0, 1) == pytest.approx(2 * 7 * B + 14 * 0.1 * B)
    assert model_states(7 * B, 0.1 * B, 3, 8) == pytest.approx((2 * 7 * B + 14 * 0.1 * B) / 8)


def test_float32_needs_no_master_copy_without_zero() -> None:
    assert model_states(B, B, 0, 1, weight_bytes=4) == 16 * B
    assert model_states(B, B, 2, 4, weight_bytes=4) == 4 * B + (4 + 12) * B / 4


@given(st.floats(1e6, 1e12), st.integers(1, 1024))
def test_a_later_stage_never_takes_more(parameters: float, gpus: int) -> None:
    found = [model_states(parameters, parameters, stage, gpus) for stage in (0, 1, 2, 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(16 * parameters)
    assert found[3] == pytest.approx(16 * parameters / gpus)


def test_working_memory_by_hand() -> None:
    shape, numbers = PRESETS["7b"], TrainingNumbers()
    p = shape.num_parameters
    assert working_memory(shape, p, 0, 1, numbers) == 4 * p  # float32 gradients of the step, no buckets alone
    assert working_memory(shape, p, 2, 8, numbers) == pytest.approx(4 * p / 8 + 2 * 2 * 5e8)
    gathered = 2 * (1e9 + 32000 * 4096)  # live parameters, and the largest module's whole gradient
    assert working_memory(shape, p, 3, 8, numbers) == pytest.approx(4 * p / 8 + 2 * 2 * 5e8 + gathered)


def test_activations_by_hand() -> None:
    shape = PRESETS["7b"]
    numbers = TrainingNumbers(trie_tokens_per_pass=1000)
    layer = 2 * 1000 * (4 * 4096 + 2 * 4096 + 2 * 4096 + 4 * 11008)
    logits = 3 * 4 * HEAD_CHUNK * 32000
    assert activations(shape, numbers, checkpointing=False) == 32 * layer + logits
    assert activations(shape, numbers, checkpointing=True) == 32 * 2 * 1000 * 4096 + layer + logits


def test_the_head_chunk_is_the_trainers() -> None:
    tree = ast.parse((ROOT / "platform" / "trimtab" / "training" / "policy.py").read_text(encoding="utf-8"))
    found = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHUNK"
    ]
    assert [ast.literal_eval(value) for value in found] == [HEAD_CHUNK]


def test_the_smallest_card_leaves_its_reserve() -> None:
    numbers = TrainingNumbers(cards_gb=(80, 24, 40), reserve_share=0.1)
    assert smallest_card(21.6e9, numbers) == 24
    assert smallest_card(21.7e9, numbers) == 40
    assert smallest_card(73e9, numbers) is None


def test_well_known_cases_fit_where_they_are_known_to() -> None:
    numbers = TrainingNumbers(trie_tokens_per_pass=2048)
    full_alone = fit(PRESETS["7b"], numbers, 0, 1, adapters=False, checkpointing=True)
    full_on_eight = fit(PRESETS["7b"], numbers, 3, 8, adapters=False, checkpointing=True)
    lora_alone = fit(PRESETS["7b"], numbers, 0, 1, adapters=True, checkpointing=True)
    assert full_alone.card_gb is None
    assert full_on_eight.card_gb is not None
    assert lora_alone.card_gb == 24
    assert gpus_of_an_engine(PRESETS["70b"], 80, numbers) == 4
    assert gpus_of_an_engine(PRESETS["7b"], 24, numbers) == 1


def test_what_no_card_holds_has_no_hours() -> None:
    made = plan(PlanConfig(model="70b", gpus=(1, 4, 64)))
    assert [one.possible for one in made.sizes[0].synthesis] == [False, True, True]
    assert [one.possible for one in made.sizes[0].training] == [False, False, True]
    first = list(next(iter(tables.tables(made))).columns[2].cells)
    assert first[0] == "—"
    assert first[1] != "—"


def test_lora_parameters_are_pefts() -> None:
    """Published: Llama-2-7B, rank 8, all linear layers: 19,988,480 trainable parameters."""
    assert PRESETS["7b"].lora_parameters(8) == 19_988_480


def test_pairs_of_the_paper_and_of_a_hundred_times_as_many() -> None:
    made = [work_of(PlanConfig(), count) for count in (50_000, 5_000_000)]
    assert [work.pairs for work in made] == [750_000, 75_000_000]
    assert [work.generations for work in made] == [250_000, 25_000_000]
    assert work_of(PlanConfig(flips=1), 50_000).pairs == 1_500_000


def test_hours_by_hand() -> None:
    config = PlanConfig(efficiency_per_doubling=0.9, start_s=360)
    one, eight = hours(config, 72_000, 1), hours(config, 72_000, 8)
    assert (one.gpu_hours, one.wall_hours) == pytest.approx((20.1, 20.1))
    assert eight.efficiency == pytest.approx(0.729)
    assert eight.wall_hours == pytest.approx(20 / (8 * 0.729) + 0.1)
    assert eight.gpu_hours == pytest.approx(8 * eight.wall_hours)


def test_training_time_by_hand() -> None:
    """6 operations a parameter and token, 2 more with checkpointing, 2 for the reference pass."""
    numbers = TrainingNumbers(trie_tokens=1000, gpu_tflops=100, mfu=0.5, gradient_checkpointing=False, epochs=2)
    config, shape = PlanConfig(training=numbers), PRESETS["7b"]
    operations = 1000 * 1000 * shape.num_parameters * (2 * 6 + 2)
    assert training_seconds(config, shape, work_of(config, 1000)) == pytest.approx(operations / 50e12)
    again = config.model_copy(update={"training": numbers.model_copy(update={"gradient_checkpointing": True})})
    operations = 1000 * 1000 * shape.num_parameters * (2 * 8 + 2)
    assert training_seconds(again, shape, work_of(again, 1000)) == pytest.approx(operations / 50e12)


def test_cost_by_hand() -> None:
    numbers = CostNumbers(price_per_gpu_hour=2, spot_share=0.5, spot_discount=0.6, spot_redone=0.1)
    assert cost(100, 50, numbers) == pytest.approx({"on_demand": 300, "with_spot": 50 * 1.1 * 2 * 0.4 + 100 * 2})
    assert cost(100, 50, numbers.model_copy(update={"spot_share": 0}))["with_spot"] == 300


def test_storage_by_hand() -> None:
    disk = DiskNumbers(chars_per_token=5, group_bytes=100, bytes_per_char=0.5)
    config = PlanConfig(disk=disk, prompt_tokens=10, new_tokens=100, model="0.5b", flips=1)
    found = stored(config, PRESETS["0.5b"], work_of(config, 1000))
    assert found["groups"] == pytest.approx(2000 * (100 + 0.5 * (50 + 6 * 500)))
    assert found["training checkpoints"] == pytest.approx(2 * 14 * 494_032_768)


def test_a_limit_breaks_where_its_slope_says() -> None:
    numbers = LimitNumbers(driver_gib=1, driver_bytes_per_id=200, driver_bytes_per_file=6400)
    first = limits(PlanConfig(limits=numbers, rows_per_file=128))[0]
    assert first.breaks_at == pytest.approx(2**30 / 250)
    assert first.at(first.breaks_at) == pytest.approx(1)
    with_none = PlanConfig(limits=numbers.model_copy(update={"seconds_per_1000_requests": 0.0}))
    assert [one.breaks_at for one in limits(with_none) if one.name == "time: selecting requests"] == [float("inf")]


def test_a_hundred_times_the_rows_are_over_a_limit_and_say_what_then() -> None:
    made = plan(PlanConfig(limits=LimitNumbers(driver_bytes_per_request=3000)))
    small, large = made.sizes
    assert small.over == []
    assert "driver: selecting requests" in large.over
    assert any(
        line.startswith("75M pairs: over the limit of driver: selecting requests:") for line in tables.lines(made)
    )


def test_the_measured_constants_are_the_defaults() -> None:
    figures = json.loads(MEASURED.read_text(encoding="utf-8"))["figures"]
    for name in ("driver_bytes_per_id", "driver_bytes_per_file", "driver_bytes_per_request", "seconds_per_1000_ids",
                 "seconds_per_1000_files", "seconds_per_1000_files_listed", "seconds_per_1000_requests",
                 "filter_bytes_per_id", "worker_bytes_per_group"):  # fmt: skip
        loose = 0.5 if name.startswith("seconds") else 0.1
        assert getattr(LimitNumbers(), name) == pytest.approx(figures[name], rel=loose), name
    settings = json.loads(MEASURED.with_name("cluster_simulation.json").read_text(encoding="utf-8"))["settings"]
    small, large = settings["measured"]
    grown = (large["driver_gib"] - small["driver_gib"]) * 2**30 / (large["tasks"] - small["tasks"])
    ids = figures["driver_bytes_per_id"] * settings["rows_per_task"]
    assert LimitNumbers().driver_bytes_per_task == pytest.approx(grown - ids, rel=0.1)
    rows, chars = figures["disk_bytes_per_row"], figures["disk_bytes_per_char"]
    disk = DiskNumbers()
    assert disk.file_bytes == pytest.approx(figures["disk_bytes_per_file"], rel=0.1)
    assert disk.pair_bytes_per_char == pytest.approx(chars["PreferencePair"], rel=0.1)
    assert disk.plan_bytes_per_char == pytest.approx(chars["PlanRow"], rel=0.1)
    for row in ("Request", "Generation", "RankedGroup"):
        assert disk.bytes_per_char == pytest.approx(chars[row], rel=0.1), row
    of_rows = {"request": "Request", "plan": "PlanRow", "generation": "Generation", "group": "RankedGroup",
               "pair": "PreferencePair"}  # fmt: skip
    for field, row in of_rows.items():
        assert getattr(disk, f"{field}_bytes") == pytest.approx(rows[row], rel=0.1, abs=2), row


def _finished(folder: Path, **over: Any) -> Path:
    values: dict[str, Any] = {
        "stage": "synthesize", "fingerprint": "0" * 16, "inputs": {}, "timings_s": {"total": 60.0}, "versions": {},
        "git": None, "created": "2026-01-01T00:00:00+00:00",
        "config": {"model": "smollm2-135m",
                   "engine": {"type": "vllm", "num_actors": 2, "max_actors": None, "accelerators": 1}},
        "counts": {"requests": 100, "generations": 400, "generated_tokens": 40_000, "groups": 90, "pairs": 900},
        "results": {"tokens_per_s": 5000.0},
    }  # fmt: skip
    folder.mkdir()
    record = Record.model_validate(values | over)
    (folder / "record.json").write_text(record.model_dump_json(), encoding="utf-8")
    return folder


def test_a_finished_run_gives_its_rate_and_lengths(tmp_path: Path) -> None:
    folder = _finished(tmp_path / "groups")
    made = plan(PlanConfig(measured=folder, model="0.5b"))
    assert made.tokens_per_s == 2500
    assert (made.config.generations_per_request, made.config.new_tokens) == (4, 100)
    assert made.config.responses_per_group == 5
    assert made.sizes[0].work.new_tokens == 50_000 * 4 * 100
    sources = {one.key: one.source for one in made.assumptions}
    assert sources["new_tokens"] == f"measured in {folder}"
    assert made.notes == [f"{folder} is by smollm2-135m, whose tokens/s are taken for 0.5b as they are"]


def test_what_the_user_gives_wins_over_what_was_measured(tmp_path: Path) -> None:
    made = plan(load(PlanConfig, None, [f"measured={_finished(tmp_path / 'groups')}", "tokens_per_s=777"]))
    assert made.tokens_per_s == 777
    assert {one.key: one.source for one in made.assumptions}["tokens_per_s"] == GIVEN
    assert made.config.new_tokens == 100


@pytest.mark.parametrize(
    ("config", "note"),
    [({"engine": {"type": "openai"}}, "asked an endpoint"), ({"engine": {"type": "vllm"}}, "ran on CPU")],
)
def test_a_rate_that_is_no_gpus_is_pointed_out(tmp_path: Path, config: dict[str, Any], note: str) -> None:
    made = plan(PlanConfig(measured=_finished(tmp_path / "groups", config=config)))
    assert note in made.notes[0]
    assert (made.tokens_per_s == 5000) == (note == "ran on CPU")


def test_the_default_rate_falls_with_the_parameters() -> None:
    rates = [rate_of(PlanConfig(), PRESETS[size]) for size in ("7b", "70b")]
    assert rates[0] == pytest.approx(4000 * 7e9 / 6_738_415_616)
    assert rates[0] / rates[1] == pytest.approx(68_976_648_192 / 6_738_415_616)


def test_every_number_is_an_assumption_that_can_be_another() -> None:
    keys = {one.key for one in plan(PlanConfig(tokens_per_s=1000)).assumptions}
    for key in ("training.mfu", "cost.spot_share", "limits.driver_bytes_per_id", "disk.bytes_per_char", "start_s"):
        assert key in keys
        assert load(PlanConfig, None, [f"{key}=0.25"])
    assert {one.key for one in plan(PlanConfig()).assumptions} == keys - {"tokens_per_s"}


def test_json_is_plain_and_complete() -> None:
    values = json.loads(json.dumps(plan(PlanConfig()).as_json(), allow_nan=False))
    assert values["schema"] == "trimtab-plan/1"
    assert values["model"] == {"name": "Llama-2-7B", "parameters": 6_738_415_616}
    assert [size["work"]["pairs"] for size in values["sizes"]] == [750_000, 75_000_000]
    assert {(fit["stage"], fit["adapters"], fit["checkpointing"]) for fit in values["training_memory"]} == {
        (stage, adapters, kept) for stage in range(4) for adapters in (False, True) for kept in (False, True)
    }


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (["model=900b"], "model"), (["gpus=[]"], "gpus"), (["gpus=[0]"], "gpus"),
        (["num_requests=[0]"], "num_requests"),
        (["training.cards_gb=[]"], "training.cards_gb"), (["measured=nowhere"], "measured"),
        (["training.mfu=2"], "training.mfu"), (["prise=3"], "prise"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(given: list[str], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^{field}: .+: .+; .+$"):
        plan(load(PlanConfig, None, given))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is not JSON"), ("{}", "doesn't say 'num_attention_heads'"), ("[]", "is no model's")],
)
def test_a_config_that_says_nothing_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        shape_of(str(tmp_path))


def test_pointers_instead_of_weights_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(InputError, match="is no safetensors file"):
        shape_of(str(tmp_path))


def test_a_run_that_generated_nothing_measures_nothing(tmp_path: Path) -> None:
    folder = _finished(tmp_path / "imported", counts={"groups": 3})
    with pytest.raises(InputError, match="generated nothing"):
        plan(PlanConfig(measured=folder))
