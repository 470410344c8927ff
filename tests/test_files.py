"""Paths and URIs: what a text means, what is refused by name, and files that are whole wherever they lie."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from trimtab import files, models, registry
from trimtab.config import Config, InputError, load, placement
from trimtab.files import (
    LocalPath,
    Location,
    arrow_paths,
    at_once,
    files_in,
    is_dir,
    is_file,
    local_folder,
    located,
    whole_file,
)


class Part(Config):
    path: Location
    weight: float = 1


class Places(Config):
    output: Location | None = placement(None)
    openers: Location | None = None
    parts: tuple[Location | Part, ...] = ()
    model: LocalPath | None = placement(None)


def test_text_without_a_scheme_is_a_plain_path() -> None:
    for text in ("out", "/tmp/a b", "./a:b", "C", "a%20b", "a/b:c"):
        assert located(text) == Path(text)
        assert type(located(text)) is type(Path())
    assert located("file:///tmp/a%20b") == Path("/tmp/a b")
    assert located(Path("out")) == Path("out")


def test_uri_is_a_path_of_its_store_and_keeps_its_spelling() -> None:
    path = located("memory://bucket/out/")
    assert not isinstance(path, Path)
    assert (path.name, str(path / "a.parquet")) == ("out", "memory://bucket/out/a.parquet")
    assert str(path.with_name("out-preview")) == "memory://bucket/out-preview"
    assert located(path) is path
    assert pickle.loads(pickle.dumps(path)) == path
    assert not path.fs.dircache.use_listings_cache


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("s4://bucket/x", r"has a scheme that is not known \(s4\); use a folder or s3://"),
        ("az://box/x", r"needs a package that is not installed .*; pip install 'adlfs'"),
        ("s3:/bucket/x", "is no URI; write it as scheme://bucket/folder"), (Path("s3://bucket/x"), "is no URI"),
        ("simplecache::memory://x/y", "is no URI"), ("memory://", "names no place"), (5, "is no path"),
        ("file://host/x", "names another machine"), ("memory://me:secret@host/x", "holds a password"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_place_is_one_line_with_its_remedy(value: object, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^output: .*: {problem}") as refused:
        load(Places, None, [f"output={value}"])
    assert "secret" not in str(refused.value) or "password" in problem


def test_place_in_a_union_is_named_by_its_field_alone() -> None:
    with pytest.raises(InputError, match=r"^parts\.1: s4://b: has a scheme"):
        load(Places, None, ["parts=[out,s4://b]"])
    parts = load(Places, None, ["parts=[out,memory://b/x,{path: memory://b/y, weight: 2}]"]).parts
    assert parts == (Path("out"), located("memory://b/x"), Part(path=located("memory://b/y"), weight=2))


def test_only_local_fields_refuse_a_uri() -> None:
    for value in ("s3://bucket/model", "memory://x/y", "s3:/bucket/model"):
        with pytest.raises(InputError, match=rf"^model: {value}: must be a local folder; give a path without"):
            load(Places, None, [f"model={value}"])
    with pytest.raises(ValueError, match="must be a local folder"):
        Places(model=located("memory://x/y"))
    assert load(Places, None, ["model=file:///tmp/m"]).model == Path("/tmp/m")


def test_models_and_their_home_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^model: s3://bucket/m: must be a local folder"):
        models.resolve("s3://bucket/m")
    monkeypatch.setenv("TRIMTAB_HOME", "s3://bucket/home")
    with pytest.raises(InputError, match=r"^TRIMTAB_HOME: s3://bucket/home: must be a local folder"):
        registry.home()


@pytest.mark.parametrize("place", ["out/x", "memory://bucket/x"])
def test_configuration_says_its_places_as_text(place: str) -> None:
    config = load(Places, None, [f"output={place}", f"openers={place}", f"parts=[{place}]"])
    assert config.model_dump(mode="json") == {"output": place, "openers": place, "parts": [place], "model": None}
    assert yaml.safe_load(config.dump_yaml())["output"] == place
    assert config.identity() == {"openers": place, "parts": [place]}
    assert Places.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("where", ["local", "store"])
def test_file_appears_whole_or_not_at_all(where: str, tmp_path: Path, store: UPath) -> None:
    folder = (tmp_path if where == "local" else store) / "new"
    with whole_file(folder / "a.txt") as part:
        part.write_text("whole", encoding="utf-8")
        assert not is_file(folder / "a.txt")
    with pytest.raises(ZeroDivisionError), whole_file(folder / "a.txt") as part:
        part.write_text(f"half {1 / 0}", encoding="utf-8")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "whole"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert not part.exists()


@pytest.mark.parametrize("where", ["local", "store"])
def test_folders_are_listed_by_name(where: str, tmp_path: Path, store: UPath) -> None:
    folder = (tmp_path if where == "local" else store) / "run[1]*"
    assert files_in(folder / "retries", "[0-9]*") == []
    for name in ("retries/002/b.txt", "retries/001/a.txt", "retries/x", "retries/.hidden.part"):
        with whole_file(folder / name) as part:
            part.touch()
    assert [path.name for path in files_in(folder / "retries", "[0-9]*")] == ["001", "002"]
    names = ("retries", "retries/001", "retries/x", "no")
    assert [is_dir(folder / name) for name in names] == [True, True, False, False]
    assert [is_file(folder / name) for name in names] == [False, False, True, False]


def test_work_over_a_store_keeps_its_order(store: UPath) -> None:
    paths = [store / str(number) for number in range(40)]
    assert list(at_once(lambda path: path.name, paths)) == [str(number) for number in range(40)]
    assert list(at_once(lambda path: path.name, [])) == []


def test_arrow_takes_local_paths_as_they_are(tmp_path: Path, store: UPath) -> None:
    assert arrow_paths([tmp_path]) == (None, [str(tmp_path)])
    filesystem, (path,) = arrow_paths([store / "x"])
    assert filesystem.type_name.startswith("py::fsspec")
    assert path == "/bucket/runs/x"


def test_folder_of_a_store_is_copied_for_those_who_cannot_read_it(tmp_path: Path, store: UPath) -> None:
    for name in ("README.md", "data/train.parquet"):
        with whole_file(store / "dataset" / name) as part:
            part.write_text(name, encoding="utf-8")
    with local_folder(store / "dataset") as copy:
        assert {path.relative_to(copy).as_posix(): path.read_text() for path in copy.rglob("*") if path.is_file()} == {
            "README.md": "README.md", "data/train.parquet": "data/train.parquet",
        }  # fmt: skip
    assert not copy.exists()
    with local_folder(tmp_path) as same:
        assert same is tmp_path


def test_settings_of_fsspec_go_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "memory", {"endpoint": "there"})
    path = pickle.loads(pickle.dumps(located("memory://bucket/x") / "y"))
    monkeypatch.delitem(conf, "memory")
    assert path.storage_options["endpoint"] == "there"


@given(st.text(st.characters(exclude_characters="/:\x00", codec="utf-8"), min_size=1, max_size=12))
def test_names_survive_the_way_into_a_uri_and_back(name: str) -> None:
    path: Any = located("memory://bucket") / name
    if name not in (".", ".."):
        assert located(str(path)) == path
        assert files.is_path(path)
