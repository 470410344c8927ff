"""What was exported is read by the libraries it is meant for: datasets, and TRL's trainers for a real step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.schemas import iter_groups, pairs
from trimtab.synthesis.export import ExportConfig, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(ranked_groups: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's groups as TRL rows and as a dataset folder."""
    output = tmp_path_factory.mktemp("exported") / "out"
    run(ExportConfig(output=output, groups=ranked_groups, formats=("trl", "dataset")))
    return output


@pytest.fixture
def some_pairs(exported: Path, tmp_path: Path) -> Any:
    """Four rows of the exported Parquet, as ``datasets`` reads them."""
    from datasets import load_dataset

    files = str(exported / "pairs" / "*.parquet")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")).select(range(4))


def test_dataset_folder_loads_offline(exported: Path, ranked_groups: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    found = load_dataset(str(exported / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    expected = [(group, pair) for group in iter_groups(ranked_groups) for pair in pairs(group)]
    assert len(found["train"]) == len(expected) == 24 * 15
    for row, (group, pair) in list(zip(found["train"], expected, strict=True))[::37]:
        assert row == {
            "prompt": [{"role": "system", "content": pair.system}, {"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "group_id": pair.group_id, "configuration": group.configuration, "rank_chosen": pair.rank_chosen,
            "rank_rejected": pair.rank_rejected,
        }  # fmt: skip


def _settings(output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output), "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
        "max_length": 1024, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip


def _one_step(trainer: Any) -> dict[str, float]:
    """Train one step; what it logged, after seeing that it moved the weights."""
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = [name for name, weight in trainer.model.named_parameters() if not weight.equal(before[name])]
    assert trainer.state.global_step == 1
    assert len(moved) == len(before)
    logged: dict[str, float] = trainer.state.log_history[0]
    return logged


def test_dpo_trainer_takes_a_step(some_pairs: Any, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(model=str(tiny_model), args=DPOConfig(**_settings(tmp_path)), train_dataset=some_pairs)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row, seen = some_pairs[0], trainer.train_dataset[0]
    expected = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(seen["prompt_ids"]) == expected
    assert tokenizer.decode(seen["chosen_ids"]).startswith(row["chosen"][0]["content"])
    assert tokenizer.decode(seen["rejected_ids"]).startswith(row["rejected"][0]["content"])
    assert _one_step(trainer)["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_reward_trainer_takes_a_step(some_pairs: Any, tiny_model: Path, tmp_path: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(model=str(tiny_model), args=RewardConfig(**_settings(tmp_path)), train_dataset=some_pairs)
    assert len(trainer.train_dataset) == 4
    logged = _one_step(trainer)
    assert 0 < logged["loss"] < 10
    assert {"accuracy", "margin"} <= set(logged)
