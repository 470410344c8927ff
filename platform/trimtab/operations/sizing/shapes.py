"""How large a model is: by a published architecture's shape, a folder's config.json, or its weights' own headers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.config import InputError


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLP (Llama, Mistral, Qwen2, SmolLM): what memory and time depend on."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    qkv_bias: bool = False
    head_dim: int | None = None
    counted: int | None = None
    """Parameters as the weights' headers have them, where there are weights."""

    @property
    def attention_width(self) -> int:
        """Width of the queries."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * (self.head_dim or self.hidden // self.heads)

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        h, q, kv, i = self.hidden, self.attention_width, self.kv_width, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    @property
    def num_parameters(self) -> int:
        """All parameters, tied embeddings once."""
        if self.counted:
            return self.counted
        bias = self.attention_width + 2 * self.kv_width if self.qkv_bias else 0
        layer = sum(math.prod(pair) for pair in self.linears) + 2 * self.hidden + bias
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * layer + self.hidden

    @property
    def largest_module(self) -> int:
        """Parameters of the largest module, which ZeRO 3 gathers whole."""
        return max(self.vocabulary * self.hidden, *(math.prod(pair) for pair in self.linears))

    def lora_parameters(self, r: int) -> int:
        """Parameters of adapters of rank r on every linear layer but the head (PEFT's ``all-linear``)."""
        return self.layers * r * sum(map(sum, self.linears))


PRESETS = {
    "0.5b": Shape("Qwen2-0.5B", 896, 24, 4864, 14, 2, 151936, tied=True, qkv_bias=True),
    "1.5b": Shape("Qwen2-1.5B", 1536, 28, 8960, 12, 2, 151936, tied=True, qkv_bias=True),
    "3b": Shape("Qwen2.5-3B", 2048, 36, 11008, 16, 2, 151936, tied=True, qkv_bias=True),
    "7b": Shape("Llama-2-7B", 4096, 32, 11008, 32, 32, 32000),
    "8b": Shape("Llama-3-8B", 4096, 32, 14336, 32, 8, 128256),
    "13b": Shape("Llama-2-13B", 5120, 40, 13824, 40, 40, 32000),
    "32b": Shape("Qwen2.5-32B", 5120, 64, 27648, 40, 8, 152064, qkv_bias=True),
    "70b": Shape("Llama-2-70B", 8192, 80, 28672, 64, 8, 32000),
}


def shape_of(model: str) -> Shape:
    """The shape of a size's name or of a model folder.

    Raises:
        InputError: neither, or a config.json that doesn't say what is needed.
    """
    preset = PRESETS.get(model.lower())
    if preset:
        return preset
    folder = Path(model).expanduser()
    path = folder / "config.json"
    if not path.is_file():
        raise InputError("model", model, "is no size and no folder with a config.json", f"give {', '.join(PRESETS)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _shape_from(folder, values)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError("model", path, f"is not JSON ({error})", "restore the file") from error
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"doesn't say {error} of a dense decoder" if isinstance(error, KeyError) else "is no model's"
        raise InputError("model", path, problem, "give a size such as 7b instead") from error


def _shape_from(folder: Path, values: dict[str, Any]) -> Shape:
    heads = int(values["num_attention_heads"])
    return Shape(
        name=folder.name,
        hidden=int(values["hidden_size"]),
        layers=int(values["num_hidden_layers"]),
        intermediate=int(values["intermediate_size"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        vocabulary=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=values.get("model_type") == "qwen2" or bool(values.get("attention_bias", False)),
        head_dim=values.get("head_dim"),
        counted=counted_parameters(folder),
    )


def counted_parameters(folder: Path) -> int | None:
    """Parameters in a folder's safetensors files, from their headers alone; None where there are no such files.

    Raises:
        InputError: a file is cut, or holds no weights but a pointer to them.
    """
    files = sorted(folder.glob("*.safetensors"))
    return sum(_in_file(path) for path in files) or None


def _in_file(path: Path) -> int:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
    except ValueError as error:
        raise InputError("model", path, f"is no safetensors file ({error})", "fetch the weights again") from error
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
