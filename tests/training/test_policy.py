"""Scoring groups: every form agrees with plain forwards, and an architecture that can't is noticed, not listed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.training.policy import Form, Group, as_scorer, block_mask, lay_out, probe, score
from trimtab.training.trie import build_forest

ATTENTION_WARNINGS = "ignore:.*flex_attention called without torch.compile.*"


def _group(seed: int, length: int = 24) -> Group:
    rng = random.Random(seed)
    harmful = [rng.randrange(3, 250) for _ in range(length)]
    turns = [harmful[: 5 * i] + [rng.randrange(3, 250) for _ in range(8)] for i in range(1, 5)]
    return [rng.randrange(3, 250) for _ in range(12)], [*turns, harmful]


def _llama(**values: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes | values)).eval()


def _plain(model: Any, group: Group) -> list[Any]:
    """By the definition: one ordinary forward of one sequence."""
    import torch

    prompt, responses = group
    found = []
    with torch.no_grad():
        for response in responses:
            ids = torch.tensor([[*prompt, *response]])
            logits = type(model).forward(model, input_ids=ids).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            found.append(torch.stack([logits[place, ids[0, place + 1]] for place in places]))
    return found


@pytest.mark.parametrize("form", ["trie", "grouped", "plain"])
@pytest.mark.parametrize("gradient", [False, True])
def test_every_form_scores_as_plain_forwards(form: Form, gradient: bool) -> None:
    import torch

    model, groups = _llama(), [_group(1), _group(2, 30)]
    layout = lay_out(groups, form, torch.device("cpu"))
    with torch.set_grad_enabled(gradient):
        scored = score(model, **layout.tensors)
    assert scored.requires_grad == gradient
    for group, paths in zip(groups, layout.paths, strict=True):
        for path, expected in zip(paths, _plain(model, group), strict=True):
            torch.testing.assert_close(scored[path].detach(), expected, rtol=1e-4, atol=1e-4)


def test_forest_costs_less_than_sequences() -> None:
    import torch

    sizes = {form: lay_out([_group(1)], form, torch.device("cpu")).num_tokens for form in ("trie", "grouped")}
    assert sizes["trie"] == 12 + 24 + 4 * 8
    assert sizes["grouped"] == 5 * (12 + 28)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_block_mask_is_the_dense_mask_and_flex_attention_gives_the_same_numbers() -> None:
    import torch
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    forest = build_forest([_group(1), _group(2, 150)])
    mask = block_mask(torch.from_numpy(forest.ends))
    size = len(forest.token_ids)
    dense = create_mask(mask.mask_mod, None, None, size, size, device="cpu")[0, 0]
    np.testing.assert_array_equal(dense.numpy(), forest.ancestors)
    query, key, value = torch.randn(3, 1, 2, size, 16)
    flex = flex_attention(query, key, value, block_mask=mask)
    sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(flex, sdpa, rtol=1e-4, atol=1e-5)


def test_probe_takes_the_trie_where_the_architecture_can() -> None:
    import torch

    form, errors = probe(as_scorer(_llama()), [_group(3)], "float32", "auto", torch.device("cpu"))
    assert form == "trie"
    assert errors["trie"] < 1e-4
    assert probe(as_scorer(_llama()), [_group(3)], "float32", "grouped", torch.device("cpu"))[0] == "grouped"


def _mpt() -> Any:
    """ALiBi: positions come from the place in the sequence, whatever one asks for."""
    import torch
    from transformers import MptConfig, MptForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MptForCausalLM(MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=256, max_seq_len=256)).eval()


def _mamba() -> Any:
    """Linear attention: a state that runs through the sequence and knows no mask."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 256, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
        return MambaForCausalLM(MambaConfig(**sizes, initializer_range=0.5)).eval()


def _cohere() -> Any:
    """Logits are scaled behind the head, so the head alone isn't enough."""
    import torch
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4, "logit_scale": 0.25}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CohereForCausalLM(CohereConfig(**sizes, initializer_range=0.2)).eval()


@pytest.mark.slow
def test_probe_notices_a_window_that_only_the_longest_sequence_feels() -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = as_scorer(MistralForCausalLM(MistralConfig(**sizes, sliding_window=64)).eval())
    short = (list(range(3, 15)), [[seed, *_group(seed)[1][4]] for seed in range(3, 30)])
    long = ([5] * 20, [list(range(10, 200)), list(range(20, 210))])
    where = torch.device("cpu")
    assert probe(model, [short], "float32", "auto", where)[0] == "trie"
    assert probe(model, [short, long], "float32", "auto", where)[0] == "grouped"


def test_head_is_one_call_of_its_module_however_long_the_group_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("trimtab.training.policy.CHUNK", 7)
    model, calls = as_scorer(_llama()), []
    model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model(**lay_out([_group(1)], "trie", torch.device("cpu")).tensors).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 1, "recomputing a chunk called the module again"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "expected"), [(_mpt, "grouped"), (_mamba, "grouped"), (_cohere, "plain")])
def test_architecture_that_cannot_falls_back_to_a_form_that_is_exact(make: Any, expected: Form) -> None:
    import torch

    model, group = make(), _group(4)
    plain = _plain(model, group)
    form, errors = probe(as_scorer(model), [group], "float32", "auto", torch.device("cpu"))
    assert form == expected
    assert errors["trie"] > 1e-2
    layout = lay_out([group], form, torch.device("cpu"))
    with torch.no_grad():
        scored = model(**layout.tensors)
    for path, own in zip(layout.paths[0], plain, strict=True):
        torch.testing.assert_close(scored[path], own, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft's use of transformers
def test_adapters_score_as_the_model_below_them_before_the_first_step(tiny_model: Path) -> None:
    import torch

    from trimtab.training.config import LoRA, TrainingConfig
    from trimtab.training.loop import load_model

    config = TrainingConfig(output=Path("x"), dtype="float32")
    base = as_scorer(load_model(str(tiny_model), config))
    adapted = as_scorer(load_model(str(tiny_model), config.model_copy(update={"lora": LoRA(r=2)}))).eval()
    tensors = lay_out([_group(3)], "trie", torch.device("cpu")).tensors
    with torch.no_grad():
        torch.testing.assert_close(adapted(**tensors), base(**tensors))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += 0.3
        assert (adapted(**tensors) - base(**tensors)).abs().max() > 0.1
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(**tensors), base(**tensors))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
