"""Every number that a plan stands on, with its value and where it is from, so that none is hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.config import Config
from trimtab.operations.sizing.config import PlanConfig

GIVEN = "given"
ASSUMED = "assumed"
LIMITS = "measured by cluster_limits on this project's code"
CHOICE = "a choice"
SOURCES = {
    "generations_per_request": "course correction, as the data plane's benchmark ran it (synthesis_data_plane)",
    "responses_per_group": "C²-SYN, arXiv 2407.16637",
    "new_tokens": "mean of synthesis_data_plane; max_tokens 128",
    "prompt_tokens": ASSUMED,
    "prefill_tokens": ASSUMED,
    "tokens_per_s_of_7b": "assumed: 7B in bfloat16 on one 80 GB GPU, batched; not measured here",
    "efficiency_per_doubling": "assumed; two bare engines side by side had 0.94 (synthesis_scaling)",
    "start_s": ASSUMED,
    "rows_per_file": "as jobs/configs/synthesize/course_correction_paper.yaml; the default is 32",
    "training.trie_tokens": "mean of 20 published groups (training_speed)",
    "training.mfu": "assumed; not measured on a GPU here",
    "training.gpu_tflops": "NVIDIA's data sheet: A100, bfloat16, dense",
    "training.cards_gb": "A10G/L4 or RTX, A100-40, A100/H100-80, H200",
    "training.reserve_share": ASSUMED,
    "training.bucket_elements": "DeepSpeed's reduce_bucket_size",
    "training.live_parameters": "DeepSpeed's stage3_max_live_parameters",
    "training.sub_group_elements": "DeepSpeed's sub_group_size",
    "training.lora_r": "CST, arXiv 2404.00495, and trimtab train's default",
    "cost.price_per_gpu_hour": ASSUMED,
    "cost.spot_share": ASSUMED,
    "cost.spot_discount": ASSUMED,
    "cost.spot_redone": ASSUMED,
    "disk.chars_per_token": "English; synthesize --plan takes the same",
    "limits.driver_gib": CHOICE,
    "limits.resume_minutes": CHOICE,
    "limits.look_s": CHOICE,
    "limits.filter_gib": CHOICE,
    "limits.driver_bytes_per_task": "growth of the driver from 500 to 5,000 tasks, less the ids (cluster_simulation)",
    "limits.filter_bytes_per_id": "a Python string of 20 characters in an array (cluster_limits)",
}


@dataclass(frozen=True)
class Assumption:
    """One number: its key for ``--set``, its value, what it is and where it is from."""

    key: str
    value: Any
    meaning: str
    source: str


def assumptions(config: PlanConfig, measured: Sequence[str] = ()) -> list[Assumption]:
    """All of a configuration's numbers.

    Args:
        measured: keys whose values are from ``config.measured``.
    """
    from_run = dict.fromkeys(measured, f"measured in {config.measured}")
    return [
        Assumption(key, value, meaning, from_run.get(key) or (GIVEN if given else _source(key)))
        for key, value, meaning, given in _numbers(config, "")
        if value is not None and key != "measured"
    ]


def _source(key: str) -> str:
    if key in SOURCES:
        return SOURCES[key]
    return LIMITS if key.startswith(("limits.", "disk.")) else CHOICE


def _numbers(config: Config, prefix: str) -> Iterator[tuple[str, Any, str, bool]]:
    """(key, value, meaning, whether the user gave it) of all fields, sections taken apart."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _numbers(value, f"{prefix}{name}.")
        else:
            meaning = " ".join((info.description or "").split())
            yield f"{prefix}{name}", value, meaning, name in config.model_fields_set
