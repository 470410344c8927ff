"""The cache of answers: what was kept is found by anybody, at once and later."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trimtab.config import InputError
from trimtab.judging.cache import NAME, AnswerCache


def test_answers_are_found_by_a_later_cache_and_by_one_at_the_same_time(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "new") as first, AnswerCache(tmp_path / "new") as second:
        first.put("a", "yes")
        second.put("b", "")
        assert first.find(["a", "b", "c"]) == second.find(["a", "b"]) == {"a": "yes", "b": ""}
    with AnswerCache(tmp_path / "new") as later:
        assert later.find(["b", "a"]) == {"a": "yes", "b": ""}
        assert later.find([]) == {}


def test_first_of_two_answers_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.put("a", "yes")
        cache.put("a", "no")
        assert cache.find(["a"]) == {"a": "yes"}


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    answers = {
        "'; DROP TABLE answers; --": "' OR 1=1",
        "nul": "a\0b",
        "é": "ja 😀\r\n\t",
        "long": "x" * 100_000,
        "": " ",
    }
    with AnswerCache(tmp_path) as cache:
        for answer_id, raw in answers.items():
            cache.put(answer_id, raw)
        assert cache.find(answers) == answers


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        with AnswerCache(tmp_path) as cache:
            for number in range(25):
                cache.put(f"{writer}-{number}", str(number))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with AnswerCache(tmp_path) as cache:
        assert len(cache.find(f"{writer}-{number}" for writer in range(4) for number in range(25))) == 100


@pytest.mark.slow
def test_processes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trimtab.judging.cache import AnswerCache\n"
        "with AnswerCache(Path(sys.argv[1])) as cache:\n"
        "    for number in range(300): cache.put(f'{sys.argv[2]}-{number}', str(number))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new"), name]) for name in "abc"]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    with AnswerCache(tmp_path / "new") as cache:
        assert len(cache.find(f"{name}-{number}" for name in "abc" for number in range(300))) == 900


def test_full_disk_is_one_line_with_the_remedy_of_every_full_disk(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.put("a", "yes")
        cache._connection.execute("PRAGMA max_page_count = 3")  # SQLite's own way to run out of space
        with pytest.raises(InputError, match=r"^judge\.cache: .*sqlite: no space left on the disk; free some space; "):
            cache.put("b", "x" * 100_000)
        assert cache.find(["a"]) == {"a": "yes"}


def test_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"this is no database, and it is long enough to be read as one" * 40)
    with pytest.raises(InputError, match=r"^judge\.cache: .*answers\.sqlite: can't be used \(file is not a database\)"):
        AnswerCache(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"^judge\.cache: .*file.*: can't be used \(.+\); choose another folder$"):
        AnswerCache(tmp_path / place)
