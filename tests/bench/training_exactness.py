"""The trie's loss and gradient against plain pairwise DPO, written here on its own; against TRL; over ZeRO workers."""

from __future__ import annotations

import copy
import random
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL, source, stored, synthesized
from trimtab import models
from trimtab.console import quiet, say

BETA = 0.1
NUM_REAL_GROUPS = 2


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Largest relative errors, and each model's own."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        store = stored(synthesized(folder / "groups", NUM_REAL_GROUPS + 2), folder / "stored", 2)
        real = [(store[i].prompt, store[i].responses) for i in store.ids]
        cases = {"smollm2-135m": (_smollm2(), real)}
        cases |= {name: (model, _random_groups()) for name, model in _random_models().items()}
        errors = {}
        for name, (model, groups) in cases.items():
            errors[name] = _compare(model, groups)
            say(f"  {name}: {errors[name]}")
        trl = _loss_error_vs_trl(_smollm2(), real[:1], folder)
        say(f"  TRL: {trl}")
        zero = _zero_errors(folder)
        say(f"  ZeRO: {zero}")
    figures = {
        "max_rel_gradient_error": max(found["gradient"] for found in errors.values()),
        "max_tensor_gradient_error": max(found["tensor"] for found in errors.values()),
        "max_rel_loss_error": max(found["loss"] for found in errors.values()),
        "plain_float32_gradient_error": max(found["plain_float32_gradient"] for found in errors.values()),
        "plain_float32_tensor_error": max(found["plain_float32_tensor"] for found in errors.values()),
        "max_tensor_from_plain_float32": max(found["tensor_from_plain_float32"] for found in errors.values()),
        "loss_error_vs_trl": trl["error"],
        "zero_error": max(found["loss"] for found in zero.values()),
        "zero_weight_error": max(found["weights"] for found in zero.values()),
    }
    settings = {"dtype": "float32", "beta": BETA, "data": "published C²-EVAL subset" if source().data else "sample",
                "models": errors, "trl": trl, "zero": zero, "real_groups": NUM_REAL_GROUPS}  # fmt: skip
    return figures, settings


def _smollm2() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(models.fetch(MODEL), dtype=torch.float32, attn_implementation="sdpa")


def _random_models() -> dict[str, Any]:
    """Two other architectures, tiny and random: biases and grouped queries; parallel residuals and partial rotary."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
             "num_attention_heads": 4, "initializer_range": 0.2}  # fmt: skip
    qwen = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2))
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, rotary_pct=0.5, hidden_dropout=0.0, attention_dropout=0.0))
    return {"qwen2-random": qwen, "gpt-neox-random": neox}


def _random_groups() -> list[tuple[list[int], list[list[int]]]]:
    groups = []
    for seed in range(3):
        rng = random.Random(seed)
        harmful = [rng.randrange(3, 299) for _ in range(60)]
        turns = [harmful[: 12 * i] + [rng.randrange(3, 299) for _ in range(15)] for i in range(1, 5)]
        own = [rng.randrange(3, 299) for _ in range(25)]
        groups.append(([rng.randrange(3, 299) for _ in range(20)], [own, *turns, harmful]))
    return groups


def _sequence_log_prob(model: Any, prompt: list[int], response: list[int]) -> Any:
    """By the definition, with none of trimtab's code: one ordinary forward of one sequence."""
    import torch

    ids = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    # in double: on CPU float32's log_softmax over 49,152 tokens is off by about 9e-6 nats a token, always one way
    return logits.double().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum()


def _references(groups: list[Any]) -> list[list[float]]:
    """Made-up reference scores near the policy's, so that the loss isn't that of an unmoved policy."""
    rng = random.Random(9)
    return [[rng.uniform(-8, 8) for _ in responses] for _, responses in groups]


def _compare(model: Any, groups: list[Any]) -> dict[str, float]:
    """Loss and gradient of one forest of all groups, float32, against each pair with two forwards of its own.

    The plain side is computed twice: in double, which is the truth that errors are measured from, and in float32,
    whose own error says how near float32 comes to it.
    """
    import torch

    from trimtab.training.config import LossConfig
    from trimtab.training.loss import group_loss
    from trimtab.training.policy import lay_out, score

    model.eval()
    with torch.no_grad():
        scores = [[float(_sequence_log_prob(model, p, r)) for r in responses] for p, responses in groups]
    references = [[s + d for s, d in zip(row, moved, strict=True)]
                  for row, moved in zip(scores, _references(groups), strict=True)]  # fmt: skip
    layout = lay_out(groups, "trie", torch.device("cpu"))
    log_probs = score(model, **layout.tensors)
    losses = []
    for paths, reference in zip(layout.paths, references, strict=True):
        policy = torch.stack([log_probs[path].double().sum() for path in paths])  # as the trainer does
        lengths = torch.tensor([float(len(path)) for path in paths])
        wanted = torch.tensor(reference, dtype=policy.dtype)
        losses.append(group_loss(policy, wanted, lengths, LossConfig(beta=BETA))[0])
    found_loss = torch.stack(losses).mean()
    found = _gradient(model, found_loss)
    plain_loss, plain = _plain_pairs(model, groups, references)
    expected_loss, expected = _plain_pairs(copy.deepcopy(model).double(), groups, references)
    own, float32 = _apart(plain, expected), _apart(found, plain)
    return {**_apart(found, expected), "loss": abs(float(found_loss.detach()) - expected_loss) / expected_loss,
            "plain_float32_gradient": own["gradient"], "plain_float32_tensor": own["tensor"],
            "plain_float32_loss": abs(plain_loss - expected_loss) / expected_loss,
            "gradient_from_plain_float32": float32["gradient"],
            "tensor_from_plain_float32": float32["tensor"]}  # fmt: skip


def _apart(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Relative error over all parameters, and of the worst tensor against max(its norm, 1e-3 of the whole norm)."""
    import torch

    whole = torch.stack([(found[n] - expected[n]).norm() for n in expected]).norm()
    total = torch.stack([tensor.norm() for tensor in expected.values()]).norm()
    tensor = max(float((found[n] - expected[n]).norm() / max(expected[n].norm(), 1e-3 * total)) for n in expected)
    return {"gradient": float(whole / total), "tensor": tensor}


def _gradient(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def _plain_pairs(model: Any, groups: list[Any], references: list[list[float]]) -> tuple[float, dict[str, Any]]:
    """Plain DPO, one pair at a time, gradients accumulated."""
    import torch

    model.zero_grad()
    total = 0.0
    for (prompt, responses), reference in zip(groups, references, strict=True):
        pairs = list(combinations(range(len(responses)), 2))
        for i, j in pairs:
            chosen = _sequence_log_prob(model, prompt, responses[i]) - reference[i]
            rejected = _sequence_log_prob(model, prompt, responses[j]) - reference[j]
            loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)) / (len(pairs) * len(groups))
            loss.backward()
            total += float(loss.detach())
    return total, {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def _loss_error_vs_trl(model: Any, groups: list[Any], folder: Path) -> dict[str, float]:
    """The loss of TRL's DPOTrainer on the pairs of a group, under a policy that has moved from its reference."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig

    from trimtab.training.config import LossConfig
    from trimtab.training.loss import group_loss
    from trimtab.training.pairwise_trainer import PairwiseTrainer
    from trimtab.training.policy import lay_out, score

    reference = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * parameter.std() * torch.randn_like(parameter)
    ((prompt, responses),) = groups
    layout = lay_out(groups, "trie", torch.device("cpu"))
    with torch.no_grad():
        by_model = [score(side.eval(), **layout.tensors) for side in (model, reference)]
    policy, base = (torch.stack([found[path].sum() for path in layout.paths[0]]) for found in by_model)
    lengths = torch.tensor([float(len(response)) for response in responses])
    ours = float(group_loss(policy, base, lengths, LossConfig(beta=BETA))[0])
    rows = [{"prompt_ids": prompt, "chosen_ids": responses[i], "rejected_ids": responses[j]}
            for i, j in combinations(range(len(responses)), 2)]  # fmt: skip
    args = DPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, beta=BETA, max_length=None, report_to=[],
        per_device_train_batch_size=len(rows), gradient_checkpointing=False,
    )  # fmt: skip
    trainer = PairwiseTrainer(
        model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models.fetch(MODEL)),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model.eval(), batch))
    return {"ours": ours, "trl": theirs, "error": abs(ours - theirs) / theirs}


def _zero_errors(folder: Path) -> dict[str, dict[str, float]]:
    """Two workers under ZeRO-2 and -3 against one worker: losses of all steps, and where the weights end."""
    from safetensors.torch import load_file

    from trimtab import cluster
    from trimtab.artifacts import read_log
    from trimtab.training import run as training
    from trimtab.training.config import TrainingConfig

    cluster.connect(cluster.RayConfig())
    sides = {"one": (1, 0), "zero_2": (2, 2), "zero_3": (2, 3)}
    for name, (workers, stage) in sides.items():
        training.run(TrainingConfig(
            output=folder / name, data=(folder / "groups",), dtype="float32", learning_rate=1e-5, groups_per_step=2,
            num_train_epochs=2, num_workers=workers, zero_stage=stage, report_to=(), max_length=8192,
        ))  # fmt: skip
    cluster.disconnect()
    start = load_file(models.fetch(MODEL) / "model.safetensors")
    weights = {name: load_file(folder / name / "model" / "model.safetensors") for name in sides}
    losses = {name: [s["dpo_loss"] for s in read_log(folder / name / "steps.jsonl")] for name in sides}
    errors = {}
    for name in ("zero_2", "zero_3"):
        moved = sum(float((weights["one"][n] - start[n].float()).norm() ** 2) for n in weights["one"]) ** 0.5
        apart = sum(float((weights["one"][n] - weights[name][n]).norm() ** 2) for n in weights["one"]) ** 0.5
        errors[name] = {"loss": max(abs(a - b) / b for a, b in zip(losses[name], losses["one"], strict=True)),
                        "weights": apart / moved, "steps": len(losses[name])}  # fmt: skip
    return errors
