"""What a processor can do, and the weight types that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.engine import VLLMEngine, engine_kwargs
from trimtab.host import has_bfloat16
from trimtab.training.config import TrainingConfig
from trimtab.training.run import with_dtype


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512f avx512bw avx512dq avx512vl\n", True),
        ("flags : avx avx2 f16c\nflags : avx avx2 f16c\n", False),
        ("flags : avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_read_from_the_flags(text: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert has_bfloat16(tmp_path / "cpuinfo") is found


def test_without_the_kernels_file_nothing_is_promised(tmp_path: Path) -> None:
    assert not has_bfloat16(tmp_path / "none")


def test_auto_is_float32_only_on_a_cpu_without_the_kernels() -> None:
    own = "auto" if has_bfloat16() else "float32"
    assert engine_kwargs(VLLMEngine())["dtype"] == own
    assert engine_kwargs(VLLMEngine(accelerators=1))["dtype"] == "auto"
    assert engine_kwargs(VLLMEngine(dtype="bfloat16"))["dtype"] == "bfloat16"


def test_training_resolves_auto_once_and_keeps_what_was_asked_for() -> None:
    def resolved(**settings: object) -> str:
        return with_dtype(TrainingConfig.model_validate({"output": "x", **settings})).dtype

    assert resolved() == ("bfloat16" if has_bfloat16() else "float32")
    assert resolved(use_gpu=True) == "bfloat16"
    assert resolved(dtype="float32", use_gpu=True) == "float32"
    assert resolved(dtype="bfloat16") == "bfloat16"
