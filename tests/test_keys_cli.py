"""``trimtab keys``: the secret alone on standard output, one line for what the user got wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.cli.keys import duration, moment
from trimtab.config import InputError
from trimtab.policy import keys

Run = Callable[..., tuple[int, str, str]]
LINE = re.compile(r"trimtab: [^:\n]+: [^\n]*: [^\n]+; [^\n]+\n")
SECRET = re.compile(r"tt-[A-Za-z0-9_-]{43}\n")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``trimtab keys`` with a home of its own; gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            main(["keys", *arguments])
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_a_key_from_its_making_to_its_end(run: Run, tmp_path: Path) -> None:
    code, secret, told = run("create", "--name", "ci", "--presets", "harmless, uncensored", "--parallel", "5",
                             "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--tokens-per-day", "99999",
                             "--expires", "30d", "--scopes", "prefill,system", "--default", "uncensored")  # fmt: skip
    path = tmp_path / "home" / "keys.json"
    assert code == 0
    assert SECRET.fullmatch(secret)
    assert told == f"ci is in {path}; its secret is shown only now\n"
    found = keys.KeyFile(path).find(f"Bearer {secret.strip()}".encode())
    assert (found.id, found.presets, found.default) == ("ci", ("harmless", "uncensored"), "uncensored")
    assert (found.requests_per_minute, found.tokens_per_minute, found.parallel, found.tokens_per_day) == (
        60,
        9000,
        5,
        99999,
    )
    assert found.scopes == ("prefill", "system")

    code, listed, _ = run("list")
    assert listed.startswith(
        "ci  harmless,uncensored  default uncensored  60 requests/min, 9000 tokens/min, 5 parallel, "
    )
    assert "scopes prefill,system  expires 20" in listed
    assert secret.strip() not in listed
    assert found.sha256 not in listed

    code, rotated, told = run("rotate", "ci", "--grace", "1h")
    assert SECRET.fullmatch(rotated)
    assert rotated != secret
    assert told.endswith("the old one ends in 1h\n")
    assert "a former secret holds until 20" in run("list")[1]
    assert run("rotate", "ci")[2].endswith("the old one ends now\n")
    assert "a former" not in run("list")[1]
    assert run("revoke", "ci") == (0, "ci is revoked\n", "")
    assert "REVOKED 20" in run("list")[1]


def test_plain_key_is_harmless_only_and_named_by_chance(run: Run) -> None:
    names = {run("create", "--file", "k.json")[2].split()[0] for _ in range(3)}
    assert len(names) == 3
    lines = run("list", "--file", "k.json")[1].splitlines()
    assert {line.split("  ")[0] for line in lines} == names
    assert {line.partition("  ")[2] for line in lines} == {"harmless  default harmless  no limits"}


def test_presets_of_a_file(run: Run) -> None:
    Path("presets.yaml").write_text("presets: {calm: Be calm.}\n", encoding="utf-8")
    options = ["create", "--file", "k.json", "--presets", "harmless,calm"]
    assert "--presets: calm: unknown preset; use some of harmless, " in run(*options)[2]
    assert run(*options, "--presets-file", "presets.yaml")[0] == 0
    assert run("create", "--file", "k.json", "--presets", "*", "--default", "honest")[0] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--presets", "harmless,root"], "--presets: root: unknown preset; use some of harmless, "),
        (["--presets", ""], "--presets: "), (["--presets", "a+b"], "--presets: a+b: "),
        (["--scopes", "prefill,admin"], "--scopes: admin: Input should be 'prefill', 'system' or 'tools'; "),
        (["--parallel", "-1"], "--parallel: -1: "), (["--parallel", "0"], "--parallel: 0: "),
        (["--requests-per-minute", "-5"], "--requests-per-minute: -5: "),
        (["--tokens-per-minute", "0"], "--tokens-per-minute: 0: "),
        (["--tokens-per-day", "-1"], "--tokens-per-day: -1: "),
        (["--default", "uncensored"], "--default: uncensored: the key may not choose uncensored; choose one"),
        (["--presets", "*", "--default", "root"], "--default: root: unknown preset; "),
        (["--presets", "honest"], "--default: none: a request without a preset would get harmless"),
        (["--expires", "yesterday"], "--expires: yesterday: is no date"), (["--expires", "2020-01-01"], ": is over; "),
        (["--expires", "0d"], "--expires: 0d: is over; "), (["--name", "a b"], "--name: a b: can't be an id; "),
        (["--presets-file", "absent.yaml"], "presets: absent.yaml: can't be read"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line_and_makes_no_key(run: Run, options: list[str], expected: str) -> None:
    code, out, told = run("create", "--file", "k.json", *options)
    assert (code, out) == (2, "")
    assert LINE.fullmatch(told), told
    assert expected in told
    assert not Path("k.json").exists()


def test_an_id_that_is_taken_or_not_there(run: Run) -> None:
    assert run("list")[2].endswith("no such file; make one with trimtab keys create\n")
    run("create", "--name", "ci")
    assert run("create", "--name", "ci")[2].startswith("trimtab: --name: ci: there is a key of this id; ")
    for command in ("rotate", "revoke"):
        code, _, told = run(command, "absent")
        assert code == 2
        assert LINE.fullmatch(told)
    assert run("rotate", "ci", "--grace", "soon")[2].startswith("trimtab: --grace: soon: is no time; ")


def test_a_file_with_other_peoples_rights_names_the_remedy(run: Run) -> None:
    run("create", "--file", "k.json")
    Path("k.json").chmod(0o644)
    for command in (["list"], ["create"], ["revoke", "x"]):
        code, out, told = run(*command, "--file", "k.json")
        assert (code, out) == (2, "")
        assert told.endswith("(mode 0644); chmod 600 k.json\n")


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("1h", 3600), ("30d", 2_592_000), ("2w", 1_209_600), ("0s", 0)]
)
def test_durations(text: str, seconds: int) -> None:
    assert duration("--grace", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5h", "1 d", "1y", "\u0661d", "999999999w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError, match=r"^--grace: .*is no time; "):
        duration("--grace", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2031-01-31", datetime(2031, 1, 31, tzinfo=UTC)),
        ("2031-01-31T12:30", datetime(2031, 1, 31, 12, 30, tzinfo=UTC)),
        ("2031-01-31T12:30+02:00", datetime(2031, 1, 31, 10, 30, tzinfo=UTC)), ("30d", NOW + timedelta(days=30)),
    ],
)  # fmt: skip
def test_moments(text: str, expected: datetime) -> None:
    assert moment("--expires", text, NOW) == expected
