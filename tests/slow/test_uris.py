"""Synthesis and export on a real S3 server, through Ray: the same groups as here, and nothing lost to interruptions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow.parquet as pq
import pytest
from fsspec import config as fsspec_config

from trimtab import lease
from trimtab.artifacts import LOCK, RECORD, Record, read_record
from trimtab.config import InputError
from trimtab.engine import OpenAIEngine
from trimtab.engine import run as engine_run
from trimtab.files import AnyPath, arrow_paths, files_in, is_file, located
from trimtab.schemas import Generation, PlanRow, RankedGroup, iter_groups, pairs, read_rows
from trimtab.sources import SourceConfig
from trimtab.synthesis import export
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.export import ExportConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

KEY, REGION = "testing", "eu-west-1"


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's S3 server in a process of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as sink:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        _wait_for(lambda: _answers(f"http://127.0.0.1:{port}/"), server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    limit = time.monotonic() + 180
    while time.monotonic() < limit:
        if ready():
            return
        assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.2)
    raise AssertionError(f"never got ready: {log.read_text(encoding='utf-8')[-2000:]}")


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Iterator[AnyPath]:
    """A bucket of the server. fsspec's settings go along to the Ray that runs already and knows nothing of it."""
    settings = {"endpoint_url": s3_server, "key": KEY, "secret": KEY, "client_kwargs": {"region_name": REGION}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec_config.conf, "s3", settings)
        path = located("s3://trimtab-test")
        path.fs.mkdir(path.path)
        yield path


class Interrupted(NamedTuple):
    config: SynthesisConfig
    folder: Path
    writer: str
    refused: str


def _recipe(source: AnyPath) -> CourseCorrectionRecipe:
    return CourseCorrectionRecipe(source=SourceConfig(data=source, num_evaluation_prompts=4), max_tokens=40)


def _config(output: AnyPath, source: AnyPath, vllm_server: str) -> SynthesisConfig:
    engine = OpenAIEngine(base_url=vllm_server, model="tiny", rows_per_batch=2, num_concurrent_requests=2)
    return SynthesisConfig(
        output=output, recipe=_recipe(source), engine=engine, requests_per_shard=4,
        quality=QualityConfig(min_words=0, max_repeated_share=None),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(bucket: AnyPath, small_source: Path) -> AnyPath:
    path = bucket / "in" / "rows.jsonl"
    path.write_bytes(small_source.read_bytes())
    return path


@pytest.fixture(scope="module")
def interrupted(
    bucket: AnyPath, source: AnyPath, s3_server: str, vllm_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Interrupted:
    """A command killed in the middle. Its own Ray knows the store from the environment, as on a cluster."""
    folder, config = tmp_path_factory.mktemp("killed"), _config(bucket / "out", source, vllm_server)
    (folder / "config.yaml").write_text(config.dump_yaml(), encoding="utf-8")
    env = os.environ | {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": REGION, "TRIMTAB_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tu-", ignore_cleanup_errors=True) as ray_folder:
        command = [sys.executable, "-c", "from trimtab.cli import main; main()", "synthesize", "--config",
                   str(folder / "config.yaml"), "--set", f"ray.temp_dir={ray_folder}"]  # fmt: skip
        with (folder / "out").open("wb") as sink:
            first = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, start_new_session=True)
        try:
            _wait_for(lambda: len(files_in(config.output / "generations")) >= 2, first, folder / "out")
            with pytest.raises(InputError) as refused:
                synthesis.run(config)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    return Interrupted(config, folder, f"process {first.pid} on {socket.gethostname()}", str(refused.value))


@pytest.fixture(scope="module")
def made(interrupted: Interrupted, ray_session: None) -> tuple[SynthesisConfig, Record, str]:
    """The same configuration, run here when the dead writer's lease has ended; with what the run said."""
    with pytest.raises(InputError, match=r"is being written .* wait \d+ s"):
        synthesis.run(interrupted.config)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (lease, engine_run):
            patch.setattr(module, "say", said.append)
        patch.setattr(lease, "EXPIRES_S", 1.0)  # as if a minute had passed
        time.sleep(2)
        record = synthesis.run(interrupted.config)
    return interrupted.config, record, "\n".join(said)


def _objects(folder: AnyPath) -> dict[str, Any]:
    return {path: info["ETag"] for path, info in folder.fs.find(folder.path, detail=True).items()}


def test_second_writer_is_told_who_writes_and_how_long_to_wait(interrupted: Interrupted) -> None:
    assert f"{interrupted.config.output}: is being written by {interrupted.writer}" in interrupted.refused
    assert read_record(interrupted.config.output) is None
    (log,) = (interrupted.folder / "home" / "logs").iterdir()
    assert log.name == "s3%3A%2F%2Ftrimtab-test%2Fout.log"
    assert str(log) in (interrupted.folder / "out").read_text(encoding="utf-8")


def test_killed_run_goes_on_and_is_made_once(
    interrupted: Interrupted, made: tuple[SynthesisConfig, Record, str], small_source: Path, tmp_path: Path
) -> None:
    config, record, said = made
    assert f"{interrupted.writer} wrote {config.output} and is gone" in said
    assert "rows are there already, going on" in said
    local = config.model_copy(update={"output": tmp_path / "out", "recipe": _recipe(small_source)})
    synthesis.plan(local)
    plan = [row.id for row in read_rows(config.output / "plan", PlanRow)]
    assert plan == [row.id for row in read_rows(local.output / "plan", PlanRow)]
    assert sorted(row.id for row in read_rows(config.output / "generations", Generation)) == sorted(plan)
    assert record.counts["generations"] == len(plan)
    assert is_file(config.output / "data_report.html")
    assert not is_file(config.output / LOCK)
    before = _objects(config.output)
    assert synthesis.run(config) == record
    assert _objects(config.output) == before


def test_lost_and_damaged_generations_alone_are_made_again(
    made: tuple[SynthesisConfig, Record, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, record, _ = made
    generations = config.output / "generations"
    before = {row.id: row.finished_at for row in read_rows(generations, Generation)}
    gone, broken, *_ = files_in(generations)
    lost = {row.id for path in (gone, broken) for row in read_rows(path, Generation)}
    (config.output / RECORD).unlink()
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:-20])
    again = synthesis.run(config)
    out = capsys.readouterr().out
    assert f"{broken.name} could not be read; its rows are made again" in out
    assert "1 generation files are gone; their rows are made again" in out
    after = {row.id: row.finished_at for row in read_rows(generations, Generation)}
    assert {row_id for row_id in after if after[row_id] != before[row_id]} == lost
    assert again.counts == record.counts


def test_pairs_in_s3_are_those_of_the_groups(made: tuple[SynthesisConfig, Record, str], bucket: AnyPath) -> None:
    config, record, _ = made
    exported = export.run(ExportConfig(output=bucket / "pairs", groups=config.output, formats=("trl", "dataset")))
    filesystem, (folder,) = arrow_paths([bucket / "pairs" / "pairs"])
    rows = pq.read_table(folder, filesystem=filesystem).to_pylist()
    groups: list[RankedGroup] = list(iter_groups(config.output))
    expected = [(pair.group_id, pair.chosen, pair.rejected) for group in groups for pair in pairs(group)]
    found = [(row["group_id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert found == expected
    assert len(found) == exported.counts["pairs"] == record.counts["pairs"]
    assert is_file(bucket / "pairs" / "dataset" / "README.md")


def test_what_the_store_refuses_is_one_line(
    bucket: AnyPath, source: AnyPath, vllm_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = located("s3://trimtab-absent/out")
    with pytest.raises(InputError, match=r"^output: s3://trimtab-absent/out: no such bucket; make it or choose"):
        synthesis.run(_config(absent, source, vllm_server))
    assert not bucket.fs.exists("trimtab-absent")
    with pytest.raises(InputError, match=r"^data: s3://trimtab-absent/x\.jsonl: no such file"):
        synthesis.run(_config(bucket / "x", located("s3://trimtab-absent/x.jsonl"), vllm_server))
    nowhere = {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec_config.conf, "s3", fsspec_config.conf["s3"] | nowhere)
    with pytest.raises(InputError, match=r"^data: s3://.*: the store does not answer as it should \(EndpointConn"):
        synthesis.run(_config(bucket / "x", located(str(source)), vllm_server))
