"""A real, random two-layer chat model with a real tokenizer, for tests that need an engine and not a mind."""

from __future__ import annotations

import json
from pathlib import Path

SAMPLE = Path(__file__).parent.parent / "platform" / "trimtab" / "data" / "sample_requests.jsonl"
END = "<|im_end|>"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", END]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of about 1,000 tokens with a ChatML template, as save_pretrained() writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    texts = [row[field] for row in rows for field in ("prompt", "response_0", "response_1")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=SPECIAL_TOKENS[0], model_max_length=2048,
        additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def save_model(tokenizer_folder: Path, folder: Path, num_heads: int = 2, num_layers: int = 2) -> None:
    """A random Llama (bfloat16 safetensors) with the tokenizer, the same each time; a head has 64 dimensions."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64 * num_heads, intermediate_size=128 * num_heads,
        num_hidden_layers=num_layers, num_attention_heads=num_heads, num_key_value_heads=num_heads, head_dim=64,
        max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.1, **ids,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
