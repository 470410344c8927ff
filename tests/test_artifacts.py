"""An output is data plus one record: skipped when done, resumed when not, refused when it is something else."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.artifacts import (
    LOCK,
    RECIPE,
    RECORD,
    Outcome,
    disk_errors_are_input_errors,
    file_fingerprint,
    fingerprint,
    read_record,
    require_record,
    run_stage,
    write_text,
)
from trimtab.config import Config, InputError, placement


class Inner(Config):
    depth: int = 1


class Recipe(Config):
    size: int = 1
    inner: Inner = Inner()
    where: Path = placement(Path("here"))


class Work:
    """Work that counts its calls and fails when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = 0, error

    def __call__(self, output: Path) -> Outcome:
        self.calls += 1
        (output / "part.txt").write_text("part", encoding="utf-8")
        if self.error:
            raise self.error
        (output / "data.txt").write_text("data", encoding="utf-8")
        return Outcome(counts={"rows": 3}, results={"share": None}, timings_s={"steps": 1.5})


def _run(output: Path, work: Work, recipe: Recipe | None = None, inputs: dict[str, str] | None = None) -> object:
    return run_stage("stage", output, recipe or Recipe(), inputs or {"data": "aa"}, work)


def test_record_holds_recipe_inputs_and_provenance(tmp_path: Path) -> None:
    record = run_stage("stage", tmp_path / "out", Recipe(size=4), {"data": "aa"}, Work())
    assert record == read_record(tmp_path / "out")
    assert (record.stage, record.inputs, record.counts, record.results) == (
        "stage", {"data": "aa"}, {"rows": 3}, {"share": None},
    )  # fmt: skip
    assert record.config == {"size": 4, "inner": {"depth": 1}, "where": "here"}
    assert record.fingerprint == fingerprint("stage", Recipe(size=4), {"data": "aa"})
    assert set(record.timings_s) == {"steps", "total"}
    assert {"python", "trimtab", "pyarrow"} <= set(record.versions)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["data.txt", "part.txt", RECIPE, RECORD]
    )


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    work = Work()
    first = _run(tmp_path / "out", work)
    assert _run(tmp_path / "out", work, Recipe(where=Path("elsewhere"))) == first
    assert work.calls == 1


def test_unfinished_work_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        _run(tmp_path / "out", Work(RuntimeError("crash")))
    assert read_record(tmp_path / "out") is None
    assert (tmp_path / "out" / "part.txt").is_file()
    work = Work()
    _run(tmp_path / "out", work)
    assert work.calls == 1
    assert read_record(tmp_path / "out") is not None


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize(
    ("recipe", "inputs", "field"),
    [
        (Recipe(size=2), {"data": "aa"}, r"size: 1 -> 2"),
        (Recipe(inner=Inner(depth=5)), {"data": "aa"}, r"inner\.depth: 1 -> 5"),
        (Recipe(), {"data": "bb"}, r"inputs\.data: 'aa' -> 'bb'"),
        (Recipe(), {"data": "aa", "model": "cc"}, r"inputs\.model: None -> 'cc'"),
    ],
)
def test_other_recipe_is_refused_and_named(
    tmp_path: Path, recipe: Recipe, inputs: dict[str, str], field: str, finished: bool
) -> None:
    with contextlib.suppress(RuntimeError):
        _run(tmp_path / "out", Work(None if finished else RuntimeError("crash")))
    work = Work()
    with pytest.raises(InputError, match=rf"^output: .*: holds another recipe \({field}\); choose another or delete"):
        _run(tmp_path / "out", work, recipe, inputs)
    assert work.calls == 0


def test_other_stage_is_another_output(tmp_path: Path) -> None:
    _run(tmp_path / "out", Work())
    with pytest.raises(InputError, match="stage: 'stage' -> 'other'"):
        run_stage("other", tmp_path / "out", Recipe(), {"data": "aa"}, Work())


def test_folder_of_someone_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty and not an output of trimtab; choose another folder"):
        _run(tmp_path, Work())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_folder_that_is_there_is_used(tmp_path: Path) -> None:
    _run(tmp_path, Work())
    assert read_record(tmp_path) is not None


@pytest.fixture
def other_writer(tmp_path: Path) -> Iterator[Path]:
    """A second process that is in the middle of writing the output."""
    output = tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from trimtab.artifacts import _only_writer\n"
        "with _only_writer(Path(sys.argv[1])): print('holds', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        yield output
        other.communicate("")


def test_second_writer_is_refused_and_the_first_goes_on(other_writer: Path) -> None:
    work = Work()
    with pytest.raises(InputError, match="another process is writing it; wait, or choose another folder"):
        _run(other_writer, work)
    assert work.calls == 0
    assert [path.name for path in other_writer.iterdir()] == [LOCK]


def test_lock_of_a_dead_writer_does_not_block(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    _run(tmp_path, Work())
    assert read_record(tmp_path) is not None


def _raise_deep(error: Exception) -> None:
    try:
        try:
            raise error
        except Exception as inner:
            raise KeyError("middle") from inner
    except KeyError:
        raise RuntimeError("outer")  # noqa: B904 (the chain by context is what is tested)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("worker said: [Errno 28] No space left on device: '/x'"),
    ],
    ids=["ENOSPC", "EDQUOT", "text"],
)
def test_full_disk_deep_in_a_chain_is_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(InputError, match=r"^output: .*: no space left on the disk; free some space"),
        disk_errors_are_input_errors(tmp_path),
    ):
        _raise_deep(error)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outer"), disk_errors_are_input_errors(tmp_path):
        _raise_deep(OSError(errno.ECONNRESET, "Connection reset"))
    with pytest.raises(FileNotFoundError), disk_errors_are_input_errors(tmp_path):
        (tmp_path / "absent").read_text(encoding="utf-8")


def test_output_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^output: .*/file/out: can't be written \(Not a directory\); choose another"):
        _run(tmp_path / "file" / "out", Work())


def test_full_disk_in_a_stage_leaves_it_resumable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^output: .*/out: no space left"):
        _run(tmp_path / "out", Work(OSError(errno.ENOSPC, "No space left on device")))
    _run(tmp_path / "out", Work())
    assert read_record(tmp_path / "out") is not None


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"stage": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match="is not a trimtab record; delete the folder and run again"):
        read_record(tmp_path)


def test_input_must_be_finished_and_of_its_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data: .*: no such folder; give the output folder of trimtab stage"):
        require_record("data", tmp_path / "absent", "stage")
    with pytest.raises(InputError, match=r"^data: .*: has no record.json \(unfinished\); run trimtab stage"):
        require_record("data", tmp_path, "stage")
    _run(tmp_path / "out", Work())
    assert require_record("data", tmp_path / "out", "stage").counts == {"rows": 3}
    with pytest.raises(InputError, match=r"^data: .*: was made by stage; give the output of trimtab train"):
        require_record("data", tmp_path / "out", "train")


def test_fingerprint_is_of_stage_recipe_and_inputs_but_not_of_places() -> None:
    base = fingerprint("stage", Recipe(), {"data": "aa"})
    assert fingerprint("stage", Recipe(where=Path("/far")), {"data": "aa"}) == base
    others = {
        fingerprint("other", Recipe(), {"data": "aa"}),
        fingerprint("stage", Recipe(size=2), {"data": "aa"}),
        fingerprint("stage", Recipe(), {"data": "ab"}),
    }
    assert len({base, *others}) == 4


def test_file_fingerprint_is_of_the_bytes_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"x" * 10), ("b", b"x" * 10), ("c", b"x" * 11)):
        (tmp_path / name).write_bytes(content)
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "b")
    assert file_fingerprint(tmp_path / "a") != file_fingerprint(tmp_path / "c")


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 1
