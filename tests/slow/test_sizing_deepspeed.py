"""The plan's memory against the estimators that DeepSpeed itself ships."""

from __future__ import annotations

import pytest

from trimtab.operations.sizing.config import TrainingNumbers
from trimtab.operations.sizing.memory import model_states, working_memory
from trimtab.operations.sizing.shapes import PRESETS

pytestmark = pytest.mark.slow
ALONE = TrainingNumbers(bucket_elements=0, live_parameters=0, sub_group_elements=1e15)


@pytest.mark.parametrize("size", ["0.5b", "7b", "70b"])
@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_model_states_are_those_of_deepspeeds_estimators(size: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape = PRESETS[size]
    p = shape.num_parameters
    ours = {stage: model_states(p, p, stage, gpus) + working_memory(shape, p, stage, gpus, ALONE) for stage in (2, 3)}
    _, two = estimate_zero2_model_states_mem_needs(p, gpus, 1, cpu_offload=False)
    _, three, _ = estimate_zero3_model_states_mem_needs(
        p, shape.largest_module, gpus, 1, cpu_offload=False, cpu_offload_params=False
    )
    assert ours[2] == pytest.approx(two, rel=1e-6)
    # DeepSpeed counts 18 bytes in stage 3, as if the float32 gradients took the place of half of the others.
    assert ours[3] - 2 * p / gpus == pytest.approx(three, rel=1e-6)
