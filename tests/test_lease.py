"""The lease on an output in a store: one writer, taken over from a dead one, and given up when it was taken away."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from upath import UPath

from trimtab import lease
from trimtab.artifacts import LOCK, RECIPE, RECORD, Outcome, read_record, require_record, run_stage, write_text
from trimtab.config import Config, InputError
from trimtab.files import AnyPath, is_file
from trimtab.lease import EXPIRES_S, leased


class Recipe(Config):
    size: int = 1


def _work(output: AnyPath) -> Outcome:
    write_text(output / "data.txt", "data")
    return Outcome(counts={"rows": 3})


def _run(output: AnyPath, recipe: Recipe | None = None) -> object:
    return run_stage("stage", output, recipe or Recipe(), {"data": "aa"}, _work)


def _names(folder: AnyPath) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _age(path: UPath, seconds: float) -> None:
    """As if the store had written it so long ago."""
    path.fs.store[path.path].modified -= timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)


def test_output_in_a_store_is_recorded_skipped_and_refused_like_any(store: UPath) -> None:
    first = _run(store)
    assert _names(store) == {"data.txt", RECIPE, RECORD}
    assert _run(store) == first == read_record(store) == require_record("groups", store, "stage")
    with pytest.raises(InputError, match=r"^output: memory://bucket/runs: holds another recipe \(size: 1 -> 2\)"):
        _run(store, Recipe(size=2))
    assert _names(store) == {"data.txt", RECIPE, RECORD}


def test_folder_of_someone_else_is_refused_untouched(store: UPath) -> None:
    write_text(store / "thesis.txt", "mine")
    with pytest.raises(InputError, match="is not empty and not an output of trimtab"):
        _run(store)
    assert _names(store) == {"thesis.txt"}


def test_work_that_wrote_nothing_leaves_nothing(store: UPath) -> None:
    def fail(output: AnyPath) -> Outcome:
        raise InputError("data", "x", "is bad", "mend it")

    with pytest.raises(InputError, match="is bad"):
        run_stage("stage", store, Recipe(), {}, fail)
    assert _names(store) == set()


def test_second_writer_is_refused_by_the_name_of_the_first_and_the_time_to_wait(store: UPath) -> None:
    with leased("output", store / LOCK) as require:
        _age(store / LOCK, 20.4)
        with pytest.raises(InputError, match=r"^output: .*/runs: is being written by process \d+ on .*wait 40 s, or"):
            _run(store)
        require()
    assert not is_file(store / LOCK)


def test_lease_that_was_not_renewed_is_taken_over(store: UPath, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(store / LOCK, json.dumps({"token": "dead", "holder": "process 7 on far"}))
    _age(store / LOCK, EXPIRES_S + 1)
    _run(store)
    assert "process 7 on far wrote memory://bucket/runs and is gone" in capsys.readouterr().out
    assert _names(store) == {"data.txt", RECIPE, RECORD}


def test_holder_renews_what_is_its_own_and_notices_what_is_not(store: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    path = store / LOCK

    def seen(then: object) -> bool:
        return path.fs.modified(path.path) != then

    with leased("output", path) as require:
        before = path.fs.modified(path.path)
        for _ in range(500):
            if seen(before):
                break
            lease.time.sleep(0.01)
        assert seen(before)
        write_text(path, json.dumps({"token": "other", "holder": "process 7 on far"}))
        with pytest.raises(InputError, match="another process took it over"):
            require()
    assert json.loads(path.read_text())["token"] == "other"  # and is left alone


def test_record_is_not_written_over_another_writer(store: UPath) -> None:
    def robbed(output: AnyPath) -> Outcome:
        write_text(output / LOCK, json.dumps({"token": "other", "holder": "process 7 on far"}))
        return _work(output)

    with pytest.raises(InputError, match="took it over"):
        run_stage("stage", store, Recipe(), {}, robbed)
    assert read_record(store) is None


def test_of_two_that_take_over_at_once_one_is_refused(store: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store / LOCK
    write_text(path, json.dumps({"token": "dead", "holder": "process 7 on far"}))
    _age(path, EXPIRES_S + 1)
    text = json.dumps({"token": "other", "holder": "process 8 on far"})
    monkeypatch.setattr(lease.time, "sleep", lambda _: write_text(path, text))
    with pytest.raises(InputError, match="took it over"):
        _run(store)


def test_local_outputs_need_no_lease(tmp_path: Path) -> None:
    _run(tmp_path / "out")
    assert _names(tmp_path / "out") == {"data.txt", RECIPE, RECORD}
