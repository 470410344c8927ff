"""From a checkpoint to a model folder that vLLM serves: plain safetensors, tokenizer, configurations and a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trimtab.training.config import TrainingConfig


def write_model(
    checkpoint: Path, base: Path, config: TrainingConfig, systems: dict[str, list[str]], card: str, target: Path
) -> None:
    """Write the model of a checkpoint, whole or not at all; adapters are merged in float32 unless told otherwise.

    Args:
        checkpoint: folder of a checkpoint, as the trainer saved it.
        base: folder of the base model.
        systems: the exact system prompts of each configuration, for ``trimtab.json``.
        card: the model card.
        target: the folder to write.
    """
    from transformers import AutoTokenizer

    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    _write_weights(checkpoint, base, config, part)
    AutoTokenizer.from_pretrained(base).save_pretrained(part)
    configurations = [{"name": name, "system": system} for name, texts in sorted(systems.items()) for system in texts]
    values = {"configurations": configurations}
    (part / "trimtab.json").write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
    (part / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)


def _write_weights(checkpoint: Path, base: Path, config: TrainingConfig, part: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, config.dtype)
    if config.lora is None:
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).save_pretrained(part)
        return
    if not config.merge:
        part.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(checkpoint / name, part / name)
        return
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    merged.to(dtype).save_pretrained(part)
