"""Fixtures of all tests: a real, random two-layer chat model with a real tokenizer, made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import tiny

if TYPE_CHECKING:
    from upath import UPath

    from trimtab.chat import Chat

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it must stand before any fixture
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported: processes side by side take a core each
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("trimtab", deadline=None, database=None)
settings.load_profile("trimtab")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer, as save_pretrained() writes it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and the tiny tokenizer, the same each session."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(tiny_tokenizer_folder, folder)
    return folder


@pytest.fixture(scope="session")
def chat(tiny_tokenizer_folder: Path) -> Chat:
    """The chat of the tiny tokenizer."""
    from trimtab.chat import Chat

    return Chat.from_folder(str(tiny_tokenizer_folder))


@pytest.fixture
def store() -> Iterator[UPath]:
    """A folder of fsspec's in-process store, which is no path of this machine and ends with the test."""
    from fsspec.implementations.memory import MemoryFileSystem

    from trimtab.files import located

    yield located("memory://bucket/runs")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published data next to the repository, for tests marked ``shared``."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: there is no {folder}, so nothing was tested on the published data")
    return folder
