"""What the terminal shows: our lines, while everything else goes to the named log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab import console
from trimtab.console import Progress, quiet, say


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """File descriptors 1 and 2 as this test sees them, with a console that writes there."""
    monkeypatch.setattr(console, "_terminal", None)
    return capfd


SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from trimtab.console import quiet, say

def noise(text):
    os.write(1, f"{text} by descriptor\\n".encode())
    print(f"{text} by print")
    print(f"{text} by stderr", file=sys.stderr)
    subprocess.run([sys.executable, "-c", f"print('{text} by child')"], check=True)

try:
    with quiet(Path(sys.argv[1])):
        noise("inside")
        say("ours [bold]unchanged[/bold]")
        raise RuntimeError
except RuntimeError:
    noise("outside")
    say("ours again")
"""


def test_only_our_lines_reach_the_terminal_and_all_comes_back_after_an_error(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "run.log"
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(log)], capture_output=True, text=True, check=True)
    assert sorted(ran.stdout.splitlines()) == [
        "ours [bold]unchanged[/bold]", "ours again", "outside by child", "outside by descriptor", "outside by print",
    ]  # fmt: skip
    assert ran.stderr == "outside by stderr\n"
    logged = log.read_text(encoding="utf-8").splitlines()
    assert sorted(logged) == [f"inside by {source}" for source in ("child", "descriptor", "print", "stderr")]


def test_empty_log_is_not_left_behind(tmp_path: Path, terminal: pytest.CaptureFixture[str]) -> None:
    with quiet(tmp_path / "run.log"):
        say("ours")
    assert list(tmp_path.iterdir()) == []


def test_log_is_appended(tmp_path: Path, terminal: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        with quiet(tmp_path / "run.log"):
            os.write(2, f"{number}\n".encode())
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "0\n1\n"


def test_quiet_leaks_no_descriptor(tmp_path: Path, terminal: pytest.CaptureFixture[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with quiet(tmp_path / "run.log"):
            say("x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_progress_without_a_terminal_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)
    with Progress("rows", 10, "rows") as progress:
        progress.update(0)
        progress.update(2)
        progress.update(6, "two failed")
    lines = terminal.readouterr().out.splitlines()
    assert lines[0] == "  rows: 0/10 rows, 0 s so far"
    assert lines[1].startswith("  rows: 2/10 rows, 0 s so far")
    assert lines[2].startswith("  rows: 6/10 rows, ")
    assert lines[2].endswith(" s left, two failed")
    assert len(lines) == 3


def test_progress_is_not_chatty(terminal: pytest.CaptureFixture[str]) -> None:
    with Progress("rows", 1000, "rows") as progress:
        for done in range(1000):
            progress.update(done)
    assert terminal.readouterr().out.strip() == ""
