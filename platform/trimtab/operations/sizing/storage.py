"""Bytes on disk: the rows of a run in Parquet, as measured on the project's own schemas, and its checkpoints."""

from __future__ import annotations

from trimtab.operations.sizing.config import PlanConfig
from trimtab.operations.sizing.memory import model_states
from trimtab.operations.sizing.shapes import Shape
from trimtab.operations.sizing.work import Work

ID_BYTES = 24
"""An id of 20 characters in a checkpoint file, with its length."""


def num_files(config: PlanConfig, work: Work) -> int:
    """Committed files of generations."""
    return -(-work.generations // config.rows_per_file)


def stored(config: PlanConfig, shape: Shape, work: Work) -> dict[str, float]:
    """Bytes by what they hold."""
    disk, chars = config.disk, config.disk.chars_per_token
    prompt, answer = config.prompt_tokens * chars, config.new_tokens * chars
    prefill = config.prefill_tokens * chars
    text = disk.bytes_per_char
    answers = config.responses_per_group * answer
    return {
        "requests": work.requests * (disk.request_bytes + text * (prompt + 2 * answer)),
        "plan": work.generations * (disk.plan_bytes + disk.plan_bytes_per_char * (prompt + prefill)),
        "generations": work.generations * (disk.generation_bytes + text * answer)
        + num_files(config, work) * disk.file_bytes,
        "row checkpoints": work.generations * ID_BYTES + num_files(config, work) * disk.file_bytes / 4,
        "groups": work.groups * (disk.group_bytes + text * (prompt + answers)),
        "exported pairs": work.pairs * (disk.pair_bytes + disk.pair_bytes_per_char * (prompt + 2 * answer)),
        "training checkpoints": (config.training.save_total_limit + 1)
        * model_states(shape.num_parameters, shape.num_parameters, 0, 1)
        * 14 / 16,  # the gradients are not kept
        "trained model": 2.0 * shape.num_parameters,
    }  # fmt: skip
