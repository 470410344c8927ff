"""Model folders: what is refused before it is loaded, and what counts as another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trimtab import models, registry
from trimtab.config import InputError


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def _edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_real_model_folder_passes(folder: Path) -> None:
    models.check_folder(folder)
    assert models.resolve(str(folder)) == folder.resolve()


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("config.json", "has no config.json"), ("*.safetensors", "has no .safetensors file"),
        ("chat_template.jinja", "has no chat template"),
    ],
)  # fmt: skip
def test_folder_that_lacks_a_part_is_refused(folder: Path, pattern: str, problem: str) -> None:
    found = list(folder.glob(pattern))
    assert found
    for path in found:
        path.unlink()
    with pytest.raises(InputError, match=rf"^model: .*: {problem}; \w+"):
        models.resolve(str(folder))


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "model.pt", "model.pth", "data.pkl"])
def test_file_that_can_run_code_is_refused_and_named(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(InputError, match=rf"^model: .*: holds {name}, which can run code; keep only safetensors"):
        models.resolve(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(folder: Path, name: str) -> None:
    _edit_json(folder / name, auto_map={"AutoModel": "x--y.Z"})
    with pytest.raises(InputError, match=rf"^model: .*: {name} has auto_map \(remote code\)"):
        models.resolve(str(folder))


def test_template_inside_the_tokenizer_configuration_counts(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    _edit_json(folder / "tokenizer_config.json", chat_template=template)
    models.check_folder(folder)


def test_damaged_json_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"^model: .*config\.json: is not JSON \(.*\); restore the file$"):
        models.resolve(str(folder))


@pytest.mark.parametrize("reference", ["smollm3", "./no/such", "/no/such/folder", "a/b/c"])
def test_unknown_name_is_refused_without_the_network(reference: str) -> None:
    with pytest.raises(
        InputError, match=r"^model: .*: no such folder; give a folder, name@version, a Hub id or one of smollm2-135m$"
    ):
        models.resolve(reference)


def test_embedded_model_that_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    assert registry.home() == tmp_path
    with pytest.raises(InputError, match="is not fetched yet; run: trimtab model fetch smollm2-135m"):
        models.resolve("smollm2-135m")


def test_fetched_model_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    shutil.copytree(folder, tmp_path / "home" / "models" / "smollm2-135m")
    assert models.fetch("smollm2-135m") == models.resolve("smollm2-135m")


def test_fetch_of_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=r"^model: gpt: is not an embedded model; use one of smollm2-135m$"):
        models.fetch("gpt")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("pattern", ["*.safetensors", "chat_template.jinja", "tokenizer.json", "config.json"])
def test_fingerprint_changes_with_one_byte_of_what_decides_the_output(folder: Path, pattern: str) -> None:
    before = models.fingerprint(folder)
    (path,) = folder.glob(pattern)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert models.fingerprint(folder) != before


def test_fingerprint_is_of_the_content_not_of_the_place_or_of_our_notes(folder: Path, tiny_model: Path) -> None:
    before = models.fingerprint(tiny_model)
    (folder / "trimtab.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text("notes", encoding="utf-8")
    assert models.fingerprint(folder) == before


def test_fingerprint_of_a_large_file_sees_its_ends_and_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WHOLE_HASH_BYTES", 1000)
    monkeypatch.setattr(models, "SAMPLE_BYTES", 64)
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    variants = [content, content + b"\0", b"\1" + content[1:], content[:-1] + b"\1"]
    prints = []
    for variant in variants:
        path.write_bytes(variant)
        prints.append(models.fingerprint(folder))
    assert len(set(prints)) == len(variants)
