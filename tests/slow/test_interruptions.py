"""kill -9 in the middle and the same command again; a disk that fills; two writers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.slow.conftest import has_checkpoint, restarted_at
from trimtab.artifacts import read_log, read_record
from trimtab.schemas import PlanRow, iter_groups, read_rows

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from trimtab.cli import main; main()"]


@pytest.fixture
def ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tk-", ignore_cleanup_errors=True) as folder:
        yield folder


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*COMMAND, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def _kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """kill -9 the command and all it started, once ``ready``; it must not have ended by itself."""
    for _ in range(1200):
        if ready():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    else:
        raise AssertionError("never got ready")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _finish(arguments: list[str]) -> str:
    process = _start(arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def _generated(output: Path) -> list[str]:
    return [i for part in (output / "generations").glob("*.parquet") for i in pq.read_table(part)["id"].to_pylist()]


def test_killed_synthesis_goes_on_and_loses_and_doubles_nothing(
    vllm_server: str, small_source: Path, tmp_path: Path, ray_folder: str
) -> None:
    """On an endpoint, which starts at once; the benchmark ``synthesis_faults`` kills runs with engines of their own."""
    output = tmp_path / "out"
    arguments = ["synthesize"]
    for item in (f"output={output}", "engine.type=openai", f"engine.base_url={vllm_server}", "engine.model=tiny",
                 f"recipe.source.data={small_source}", "recipe.source.num_evaluation_prompts=4",
                 "recipe.max_tokens=100", "engine.num_concurrent_requests=1", "engine.rows_per_batch=4",
                 f"ray.temp_dir={ray_folder}", "quality.min_words=0", "quality.max_repeated_share=null"):  # fmt: skip
        arguments += ["--set", item]
    _kill_when(_start(arguments), lambda: len(list((output / "generations").glob("*.parquet"))) >= 2)
    assert read_record(output) is None
    kept = len(_generated(output))
    out = _finish(arguments)
    plan = {row.id for row in read_rows(output / "plan", PlanRow)}
    made = _generated(output)
    assert f"{kept}/{len(plan)} rows are there already" in out
    assert sorted(made) == sorted(plan)
    assert len(list(iter_groups(output))) == 2 * len(plan) // 5


def test_killed_training_goes_on_from_its_checkpoint(tiny_model: Path, tmp_path: Path, ray_folder: str) -> None:
    groups, output = _imported(tmp_path, 24), tmp_path / "train"
    arguments = ["train"]
    for item in (f"output={output}", f"model={tiny_model}", f"data=[{groups}]", "groups_per_step=2",
                 "save_steps=2", "num_train_epochs=4", "lora.r=4", f"ray.temp_dir={ray_folder}"):  # fmt: skip
        arguments += ["--set", item]
    _kill_when(_start(arguments), lambda: has_checkpoint(output))
    assert read_record(output) is None
    _finish(arguments)
    steps = read_log(output / "steps.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 49))
    assert restarted_at(output) > 1
    assert (output / "model" / "model.safetensors").is_file()


def _imported(tmp_path: Path, num: int) -> Path:
    rows = [{"system": "Be kind.", "prompt": f"How are you, {i}?", "chosen": f"Well {i}.", "rejected": "Bad."}
            for i in range(num)]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    output = tmp_path / "groups"
    _finish(_import_arguments(tmp_path / "rows.json", output))
    return output


def _import_arguments(rows: Path, output: Path) -> list[str]:
    return ["synthesize", "--set", f"output={output}", "--set", "recipe.type=imported", "--set", f"recipe.data={rows}"]


def test_full_disk_is_one_line_and_the_same_command_finishes(tmp_path: Path) -> None:
    disk, rows = tmp_path / "disk", tmp_path / "rows.json"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small tmpfs here: the full-disk test did NOT run")
    try:
        text = [os.urandom(200).hex() for _ in range(400)]
        made = [{"system": "s", "prompt": p, "chosen": p + "a", "rejected": p + "b"} for p in text]
        rows.write_text(json.dumps(made))
        arguments = _import_arguments(rows, disk / "out")
        process = _start(arguments)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert err.count("\n") == 1
        assert "no space left on the disk" in err
        assert not list((disk / "out").glob("groups/*"))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        _finish(arguments)
        assert len(list(iter_groups(disk / "out"))) == 400
    finally:
        subprocess.run(["umount", disk], check=True)


def test_failed_command_leaves_its_ray_before_the_terminal_is_the_terminal_again(
    ray_folder: str, tmp_path: Path
) -> None:
    """Workers that end late would write below the line that says what went wrong."""
    script = """
import signal
import sys
from pathlib import Path
import ray
from trimtab import cluster
from trimtab.console import quiet, say
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with quiet(Path(sys.argv[1])), cluster.left_at_the_end():
        cluster.connect(cluster.RayConfig(temp_dir=Path(sys.argv[2])))
        with cluster.left_at_the_end():
            pass
        assert ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        ray.get(ray.remote(lambda: print("noise", flush=True)).remote())
        say("what went wrong")
        raise ValueError
except ValueError:
    assert not ray.is_initialized()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "log"), ray_folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("what went wrong\n", "")
    assert "noise" in (tmp_path / "log").read_text(encoding="utf-8")
