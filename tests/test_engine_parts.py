"""The engine's committed files: counted once, checked for what can't be read, and for ids that lack or repeat."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from trimtab.engine import VLLMEngine, bundles, engine_env, engine_kwargs
from trimtab.engine.ids import Ids, ids_in
from trimtab.engine.parts import Parts, mend_checkpoints, remove_unreadable
from trimtab.engine.run import _verify
from trimtab.engine.telemetry import _samples
from trimtab.engine.vllm_stage import _to_engine_row, num_batches, num_light_tasks
from trimtab.files import AnyPath, files_in
from trimtab.schemas import Generation, PlanRow, write_rows, write_table

PLAN = Ids([np.array([b"a", b"b", b"c"])])


def _part(folder: AnyPath, name: str, *ids: str, error: str = "") -> AnyPath:
    rows = [Generation(id=i, text="x" * 500, num_prompt_tokens=1, num_tokens=3, error=error) for i in ids]
    write_rows(folder / "generations" / f"{name}.parquet", Generation, rows)
    write_table(folder / "checkpoint" / f"{name.removesuffix('-0')}.parquet", pa.table({"id": list(ids)}))
    return folder / "generations" / f"{name}.parquet"


def test_parts_are_counted_as_they_come(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "generations", PLAN)
    parts.look()
    assert (parts.num_there, parts.missing) == (0, ["a", "b", "c"])
    _part(tmp_path, "u_000000-0", "a", "b")
    (tmp_path / "generations" / "half.parquet").write_bytes(b"PAR1 still being written")
    parts.look()
    assert (parts.num_there, parts.missing) == (2, ["c"])
    _part(tmp_path, "u_000001-0", "c", error="failed")
    parts.look()
    assert (parts.num_there, parts.missing, parts.doubled) == (3, [], [])
    assert (parts.num_rows, parts.num_tokens, parts.num_errors) == (3, 9, 1)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_unreadable_part_goes_with_its_checkpoint_alone(tmp_path: Path, damage: str) -> None:
    kept, broken = _part(tmp_path, "u_000001-0", "a"), _part(tmp_path, "u_000010-0", "b")
    content = bytearray(broken.read_bytes())
    if damage == "cut":
        broken.write_bytes(content[: len(content) // 2])
    else:
        content[content.index(b"b", 4) + 8] ^= 0xFF  # inside the first page, whose checksum tells
        broken.write_bytes(content)
    assert remove_unreadable(tmp_path) == ["u_000010-0.parquet"]
    assert kept.is_file()
    assert not broken.exists()
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["u_000001.parquet"]
    assert remove_unreadable(tmp_path) == []


def test_files_in_a_store_are_counted_and_the_broken_one_goes(store: UPath) -> None:
    _part(store, "u_000001-0", "a"), _part(store, "u_000002-0", "b", error="failed")
    parts = Parts(store / "generations", PLAN)
    parts.look()
    assert parts.missing == ["c"]
    assert (parts.num_rows, parts.num_tokens, parts.num_errors) == (2, 6, 1)
    broken = store / "generations" / "u_000002-0.parquet"
    broken.write_bytes(broken.read_bytes()[:-9])
    assert remove_unreadable(store) == ["u_000002-0.parquet"]
    assert [path.name for path in files_in(store / "generations")] == ["u_000001-0.parquet"]
    assert [path.name for path in files_in(store / "checkpoint")] == ["u_000001.parquet"]


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: UPath) -> AnyPath:
    return tmp_path if request.param == "local" else store


def test_checkpoints_say_what_the_files_say(folder: AnyPath) -> None:
    _part(folder, "u_000001-0", "a"), _part(folder, "u_000002-0", "b"), _part(folder, "u_000003-0", "c")
    (folder / "generations" / "u_000002-0.parquet").unlink()
    for name in ("u_000001.pending", "u_000004.pending"):  # a commit cut in half, and one that was never made
        write_table(folder / "checkpoint" / f"{name}.parquet", pa.table({"id": ["x"]}))
    assert mend_checkpoints(folder) == 1
    left = [path.name for path in files_in(folder / "checkpoint")]
    assert left == ["u_000001.parquet", "u_000003.parquet", "u_000004.pending.parquet"]
    assert mend_checkpoints(folder) == 0


def test_every_id_of_the_plan_must_be_there_once(tmp_path: Path) -> None:
    _part(tmp_path, "u_000000-0", "a", "b", "zz-of-an-earlier-plan")
    parts = Parts(tmp_path / "generations", PLAN)
    parts.look()
    with pytest.raises(RuntimeError, match=r"rows: 1 of 3 rows were not generated \(such as c\)"):
        _verify(parts, len(PLAN), "rows")
    _part(tmp_path, "u_000001-0", "c")
    parts.look()
    _verify(parts, len(PLAN), "rows")
    _part(tmp_path, "u_000002-0", "a", "zz-of-an-earlier-plan")
    parts.look()
    with pytest.raises(RuntimeError, match=r"rows: 1 of 3 rows were written twice \(such as a\)"):
        _verify(parts, len(PLAN), "rows")


def test_ids_of_a_folder_are_sorted_and_each_there_once(tmp_path: Path) -> None:
    _part(tmp_path, "u_000001-0", "c", "a" * 20), _part(tmp_path, "u_000002-0", "ö", "c"), _part(tmp_path, "u_000003-0")
    assert ids_in(tmp_path / "generations").names() == ["a" * 20, "c", "ö"]
    assert len(ids_in(tmp_path / "nowhere")) == 0


def test_cache_counters_are_read_by_model() -> None:
    text = (
        "# TYPE ray_vllm_prefix_cache_hits_total counter\n"
        'ray_vllm_prefix_cache_hits_total{model_name="m"} 30.0\n'
        "# TYPE ray_other gauge\nray_other 1.0\n"
    )
    (sample,) = _samples(text)
    assert sample == ("ray_vllm_prefix_cache_hits_total", {"model_name": "m"}, 30.0)


def test_plan_row_of_an_older_version_continues_its_turn(tiny_tokenizer_folder: Path) -> None:
    row = PlanRow(id="i", request_id="r", kind="k=10", prompt="How?", prefill="Sure,", max_tokens=3).model_dump()
    model = str(tiny_tokenizer_folder)
    continued, reopened = (_to_engine_row(model, False, row | {"reopen": which}) for which in (False, True))
    assert continued != reopened
    assert _to_engine_row(model, False, row | {"reopen": None}) == continued
    del row["reopen"]
    assert _to_engine_row(model, False, row) == continued


def test_engine_is_bound_only_where_it_has_all_cores_and_is_told_its_threads() -> None:
    cores = len(os.sched_getaffinity(0))
    alone, two = engine_env(VLLMEngine()), engine_env(VLLMEngine(num_actors=2 * cores))
    assert (alone["OMP_PLACES"], alone["OMP_NUM_THREADS"]) == (f"{{0:{cores}}}", str(cores))
    assert two["OMP_NUM_THREADS"] == "1"
    assert ("OMP_PLACES" in two) == (cores == 1)


def test_workers_of_one_engine_on_cpu_share_its_cores() -> None:
    alone, both = (engine_env(VLLMEngine(tensor_parallel_size=size, cores_per_actor=4)) for size in (1, 2))
    assert alone["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in both
    assert both["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(both["OMP_NUM_THREADS"]) == max(1, int(alone["OMP_NUM_THREADS"]) // 2)


def test_tensor_parallel_engine_on_cpu_is_processes_of_one_node() -> None:
    cpu, gpu = (VLLMEngine(tensor_parallel_size=2, cpus_per_actor=3, accelerators=number) for number in (0, 2))
    assert (bundles(cpu), engine_kwargs(cpu)["distributed_executor_backend"]) == ([{"CPU": 6}], "mp")
    assert (bundles(gpu), "distributed_executor_backend" in engine_kwargs(gpu)) == ([{"CPU": 3, "GPU": 1}] * 2, False)


def test_engine_asks_for_huge_pages_on_cpu_alone() -> None:
    assert engine_env(VLLMEngine())["THP_MEM_ALLOC_ENABLE"] == "1"
    assert "THP_MEM_ALLOC_ENABLE" not in engine_env(VLLMEngine(accelerators=1))


def test_token_budget_is_vllms_own_unless_given() -> None:
    assert "max_num_batched_tokens" not in engine_kwargs(VLLMEngine())
    assert engine_kwargs(VLLMEngine(max_num_batched_tokens=64))["max_num_batched_tokens"] == 64


def test_batches_in_flight_hold_the_engines_sequences_twice_over() -> None:
    assert num_batches(VLLMEngine(max_num_seqs=256, rows_per_batch=32)) == 16
    assert num_batches(VLLMEngine(max_num_seqs=10, rows_per_batch=7)) == 3
    assert num_batches(VLLMEngine(max_num_seqs=256, rows_per_batch=8, batches_per_block=4)) == 16
    assert num_batches(VLLMEngine(max_num_seqs=4, rows_per_batch=128)) == 2
    assert num_batches(VLLMEngine(num_concurrent_batches=1)) == 1


def test_cheap_stages_grow_with_the_engines() -> None:
    numbers = [num_light_tasks(VLLMEngine(num_actors=1, max_actors=most)) for most in (None, 8, 64)]
    assert numbers == [2, 3, 10]
