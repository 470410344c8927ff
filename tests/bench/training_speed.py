"""One epoch over real C²-SYN groups: TRL's DPOTrainer on the pairs against the token trie, and what the trie costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL, side, source, stored, synthesized
from trimtab import models
from trimtab.console import quiet, say
from trimtab.training.trie import num_nodes

NUM_GROUPS = 20
BATCHES = (1, 2)  # 5 padded pairs were slower than 1 in earlier measurements (69.8 s against 66.0 s for four groups)
SIDE = "tests.bench._speed_side"


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Ratios of seconds, memory and tokens a second; both sides in processes of their own, one after the other."""
    model = str(models.fetch(MODEL))
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        files, sizes = {}, {}
        for mode in ("one_opener", "paper"):
            groups = synthesized(folder / mode, NUM_GROUPS + 4, mode=mode)
            store = stored(groups, folder / f"{mode}-stored", NUM_GROUPS)
            files[mode] = {"model": model, "groups": str(folder / f"{mode}-stored" / "groups.arrow")}
            sizes[mode] = [num_nodes(store[i].prompt, store[i].responses) for i in store.ids]
            assert len(sizes[mode]) == NUM_GROUPS
        log = folder / "sides.log"
        tried = {batch: _side(log, files["one_opener"], side="trl", num_groups=4, batch=batch) for batch in BATCHES}
        best = min(tried, key=lambda batch: tried[batch]["seconds"])
        measured: dict[str, Any] = {"trl_4_groups": tried}
        for mode, given in files.items():
            measured[f"ranked_{mode}"] = _side(log, given, side="ranked", num_groups=NUM_GROUPS)
            measured[f"trl_{mode}"] = _side(log, given, side="trl", num_groups=NUM_GROUPS, batch=best)
        measured["ranked_4_groups"] = _side(log, files["one_opener"], side="ranked", num_groups=4)
        measured["lm"] = _side(log, files["one_opener"], side="lm", lengths=sizes["one_opener"])
        return _figures(measured), _settings(measured, best, sizes)


def _side(log: Path, given: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = side(SIDE, given | more, log)
    say(f"  {more.get('side')} { ({k: v for k, v in more.items() if k in ('batch', 'num_groups')}) }: {found}")
    return found


def _figures(measured: dict[str, Any]) -> dict[str, Any]:
    ours, plain = measured["ranked_one_opener"], measured["lm"]
    rates = [found["tokens"] / found["train_seconds"] for found in (ours, plain)]
    return {
        "speedup_vs_trl_one_opener": measured["trl_one_opener"]["seconds"] / ours["seconds"],
        "speedup_vs_trl": measured["trl_paper"]["seconds"] / measured["ranked_paper"]["seconds"],
        "speedup_train_only_one_opener": measured["trl_one_opener"]["train_seconds"] / ours["train_seconds"],
        "peak_memory_vs_trl": measured["ranked_4_groups"]["peak_memory_gib"]
        / measured["trl_4_groups"][1]["peak_memory_gib"],
        "tokens_per_s_vs_lm_step": rates[0] / rates[1],
        "tokens_per_s": rates[0],
    }


def _settings(measured: dict[str, Any], best: int, sizes: dict[str, list[int]]) -> dict[str, Any]:
    data = "published C²-EVAL subset" if source().data else "shipped sample"
    return {"model": MODEL, "data": data, "num_groups": NUM_GROUPS, "groups_per_step": 4, "trl_best_batch": best,
            "dtype": "bfloat16 weights, bf16 autocast, all parameters, AdamW, no truncation, no checkpointing",
            "clock": "from imported libraries to the last step: model and data loading, reference pass, optimizer",
            "mean_trie_tokens": {mode: sum(of) / len(of) for mode, of in sizes.items()},
            "measured": measured}  # fmt: skip
