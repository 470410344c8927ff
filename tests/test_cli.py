"""The command line: help at once, dry runs that write nothing, and one line for what the user got wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trimtab import console
from trimtab.cli import STAGES, main

Run = Callable[..., tuple[int, str, str]]
LINE = re.compile(r"trimtab: [^:\n]+: [^\n]+: [^\n]+; [^\n]+\n")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in an empty folder; gives (exit code, stdout, stderr)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(console, "_terminal", None)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            main(list(arguments))
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


def _one_line(result: tuple[int, str, str]) -> str:
    code, _, stderr = result
    assert code == 2
    assert LINE.fullmatch(stderr), stderr
    return stderr


def test_help_lists_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in {name.split()[0] for name in STAGES} | {"model"}:
        assert re.search(rf"^ +{command} ", out, re.MULTILINE), command
    code, out, _ = run("evaluate", "--help")
    for command in (name.split()[1] for name in STAGES if name.startswith("evaluate ")):
        assert re.search(rf"^ +{command} ", out, re.MULTILINE), command


@pytest.mark.parametrize("command", STAGES)
def test_every_stage_takes_the_three_options(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert all(option in out for option in ("--config", "--set", "--dry-run"))


SETTINGS = {
    "synthesize": ["output=out", "recipe.seed=7"],
    "train": ["output=out", "data=[groups]", "beta=0.2"],
    "evaluate prefill": ["output=out", "ks=[10,20]"],
    "evaluate configurable": ["output=out", "max_tokens=9"],
    "evaluate retention": ["output=out", "num_prompts=3"],
    "evaluate ability": ["output=out", "max_documents=3"],
    "evaluate injection": ["output=out", "question=attack_success"],
    "evaluate robustness": ["output=out", "max_tokens=9"],
    "evaluate judge": ["output=out", "labels=labels.jsonl", "seed=3"],
    "serve": ["port=8123"],
    "pipeline": ["output=out", "num_requests=5"],
}


@pytest.mark.parametrize("command", SETTINGS)
def test_dry_run_prints_the_resolved_yaml_and_creates_nothing(run: Run, command: str) -> None:
    options = [part for item in SETTINGS[command] for part in ("--set", item)]
    code, out, err = run(*command.split(), "--dry-run", *options)
    assert (code, err) == (0, "")
    printed = yaml.safe_load(out)
    key, value = SETTINGS[command][-1].split("=")
    for part in key.split("."):
        printed = printed[part]
    assert printed == yaml.safe_load(value)
    assert list(Path.cwd().iterdir()) == []


def test_dry_run_of_its_own_output_is_the_same(run: Run) -> None:
    _, first, _ = run("synthesize", "--dry-run", "--set", "output=out", "--set", "recipe.num_cuts=3")
    Path("resolved.yaml").write_text(first, encoding="utf-8")
    assert run("synthesize", "--dry-run", "--config", "resolved.yaml") == (0, first, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "output=out", "--set", "modell=x"], "trimtab: modell: x: unknown key; did you mean model?"),
        (["--set", "output"], "trimtab: --set: output: is not key=value; "),
        (["--set", "output=out", "--set", "recipe.num_cuts=many"], "num_cuts: many: Input should be a valid integer"),
        (["--config", "absent.yaml"], "trimtab: --config: absent.yaml: no such file; give the path of a YAML file"),
        ([], "trimtab: output: missing: a value is needed; add it to the file or --set output=..."),
    ],
)
def test_wrong_configuration_is_one_line_and_creates_nothing(run: Run, arguments: list[str], line: str) -> None:
    assert line in _one_line(run("synthesize", *arguments))
    assert list(Path.cwd().iterdir()) == []


def test_unknown_key_of_a_file_names_the_file(run: Run) -> None:
    Path("config.yaml").write_text("output: out\nmodell: x\n", encoding="utf-8")
    line = _one_line(run("synthesize", "--config", "config.yaml"))
    assert line == "trimtab: modell: x: unknown key (in config.yaml); did you mean model?\n"


@pytest.mark.parametrize("command", ["synthesize", "evaluate prefill", "evaluate configurable"])
def test_missing_data_path(run: Run, tiny_model: Path, command: str) -> None:
    key = "recipe.source.data" if command == "synthesize" else "source.data"
    options = ["--set", "output=out", "--set", f"model={tiny_model}", "--set", f"{key}=absent.jsonl"]
    line = _one_line(run(*command.split(), *options))
    assert line == "trimtab: data: absent.jsonl: no such file; give the path of a .jsonl, .json or .parquet file\n"
    assert not Path("out").exists()


def test_missing_training_input(run: Run, tiny_model: Path) -> None:
    line = _one_line(run("train", "--set", "output=out", "--set", f"model={tiny_model}", "--set", "data=[absent]"))
    assert line == "trimtab: data: absent: no such folder; give the output folder of trimtab synthesize\n"


@pytest.mark.parametrize("command", ["synthesize", "train", "evaluate prefill", "evaluate retention"])
def test_model_folder_without_safetensors(run: Run, tiny_model: Path, command: str) -> None:
    shutil.copytree(tiny_model, "model", ignore=shutil.ignore_patterns("*.safetensors"))
    options = ["--set", "output=out", "--set", "model=model", *(["--set", "data=[x]"] if command == "train" else [])]
    line = _one_line(run(*command.split(), *options))
    assert line == "trimtab: model: model: has no .safetensors file; save it with save_pretrained()\n"
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["groups_per_step=1", "num_workers=2"], "groups_per_step: 1: is fewer than num_workers = 2; raise it"),
        (["loss_type=ipo", "label_smoothing=0.1"], "label_smoothing: 0.1: means nothing to loss_type ipo; set it to 0"),
        (["loss_type=plackett_luce", "pairs=adjacent"], "pairs: adjacent: plackett_luce takes the ranking as a whole"),
        (["reference=adapter"], "reference: adapter: needs adapters; set lora, or reference=precompute"),
        (["load_in_4bit=true"], "load_in_4bit: True: is for adapters on a GPU; set lora and use_gpu"),
        (["attention=flex_attention"], "attention: flex_attention: has no backward pass on CPU; use sdpa"),
        (["validation.keep_best=true"], "validation.share: 0.0: nothing is held out to choose by; hold out some"),
        (["validation.keep_best=true", "validation.metric=corr_mean"], "no validation function was handed in"),
        (["objective=pairwise", "label_smoothing=0.1"], "label_smoothing: 0.1: is not known to TRL's DPOTrainer"),
        (["objective=pairwise", "loss_type=plackett_luce"], "loss_type: plackett_luce: is not a loss of pairs"),
        (["name=no/name"], "name: no/name: is no name of a model; use letters"),
        (["name=x", "merge=false"], "name: x: a folder of adapters alone can't be served; set merge=true"),
        (["deepspeed.zero_optimization.stage=3"], "deepspeed: zero_optimization.stage: is set by fields of its own"),
        (["data=[]"], "data: []: no input; give at least one output of trimtab synthesize"),
    ],
)
def test_training_settings_that_exclude_one_another(
    run: Run, tiny_model: Path, options: list[str], expected: str
) -> None:
    given = ["output=out", f"model={tiny_model}", "data=[x]", *options]
    line = _one_line(run("train", *(part for item in given for part in ("--set", item))))
    assert expected in line
    assert not Path("out").exists()


def test_unknown_embedded_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(Path.cwd() / "home"))
    line = _one_line(run("model", "fetch", "gpt"))
    assert line == "trimtab: model: gpt: is not an embedded model; use one of smollm2-135m\n"


def test_every_job_script_is_its_command() -> None:
    root = Path(__file__).parent.parent
    scripts = sorted((root / "jobs").glob("*.py"))
    found = set()
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        (command,) = re.findall(r'run_job\("([a-z ]+)"\)', text)
        assert command in STAGES
        assert len(text.splitlines()) <= 30
        found.add(command)
    assert {command for command in STAGES if command.startswith("evaluate ")} <= found
    assert {"synthesize", "export", "train", "pipeline"} <= found


def test_job_script_answers_like_the_command() -> None:
    script = Path(__file__).parent.parent / "jobs" / "train_dpo.py"
    ran = subprocess.run([sys.executable, str(script), "--set", "x"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "trimtab: --set: x: is not key=value; write it as --set section.key=value\n"


def test_unknown_option_exits_2_too(run: Run) -> None:
    code, _, err = run("synthesize", "--no-such-option")
    assert code == 2
    assert "No such option" in err


@pytest.mark.parametrize("makes_another", [False, True])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_command_says_what_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_code: int, makes_another: bool
) -> None:
    """``ray.get`` makes another exit of that which a handler asks for."""

    def interrupted(config: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except SystemExit:
            sys.exit(1 if makes_another else 143)

    monkeypatch.setattr("trimtab.evaluation.retention.run", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        code, out, _ = run("evaluate", "retention", "--set", "output=out", "--set", "model=none")
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert code == exit_code
    assert "evaluate retention: interrupted; the same command goes on" in out
    assert signal.getsignal(signal.SIGTERM) is before
