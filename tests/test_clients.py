"""The examples, asked for real of an HTTP server behind the gate; the model behind it is scripted."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.clients import EXAMPLES, RUNS, run_example, run_examples
from tests.policy.served import gated, listening
from trimtab.chat import Chat
from trimtab.policy import keys
from trimtab.safety import PRESETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The API's base URL and a key that may choose everything."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    _, secret = keys.create(file, keys.Grant(presets=("*",)))
    with listening(gated(chat, file)) as root:
        yield f"{root}/v1", secret


def test_every_example_is_run() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert {name for name, _, _ in RUNS} == files


def test_examples_are_answered_under_what_they_ask_for(endpoint: tuple[str, str]) -> None:
    run_examples(*endpoint)


def test_answer_is_printed_and_a_wrong_key_is_an_error(endpoint: tuple[str, str]) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": endpoint[0], "OPENAI_API_KEY": endpoint[1]}
    assert PRESETS["honest"].system in run_example("curl.sh", ("honest",), environment)
    with pytest.raises(AssertionError, match="401"):
        run_example("curl.sh", (), environment | {"OPENAI_API_KEY": "tt-wrong"})
