"""The vLLM engine under Ray Data: exactness of prompts, resume, errors as data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.judging.server import Answer, Call, JudgeServer, fails, says
from trimtab.config import InputError
from trimtab.engine import OpenAIEngine, VLLMEngine, generate
from trimtab.schemas import PlanRow, read_rows

pytestmark = pytest.mark.slow

ENGINE = VLLMEngine(max_num_seqs=16, kv_cache_gib=1, max_model_len=256, rows_per_batch=4, cores_per_actor=1)


def _plan(num: int) -> list[PlanRow]:
    return [PlanRow(id=f"row{i:03d}", request_id=f"q{i}", kind="SYN_1", system="Be brief.", prompt=f"What is {i}?",
                    prefill="Well, the number" if i % 2 else "", max_tokens=6) for i in range(num)]  # fmt: skip


def _greedy(folder: Path, row: PlanRow) -> list[int]:
    """An independent reference: greedy decoding by transformers from the same ids."""
    import torch
    from transformers import AutoModelForCausalLM

    from trimtab.chat import Chat

    ids = Chat.from_folder(str(folder)).prompt_ids(row.system, row.prompt, row.prefill)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=row.max_tokens, do_sample=False)
    return [int(token) for token in out[0, len(ids) :]]


@pytest.fixture(scope="module")
def made(tiny_model: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PlanRow]]:
    folder = tmp_path_factory.mktemp("engine") / "out"
    sure = [row.model_copy(update={"id": f"sure{i}", "temperature": 2.0, "top_p": 1e-6})
            for i, row in enumerate(_plan(4))]  # fmt: skip
    plan = [*_plan(11), *sure, PlanRow(id="long", request_id="q", kind="SR", prompt="word " * 2000, max_tokens=6)]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    generate(plan, folder, tiny_model, ENGINE.model_copy(update={"dtype": "float32"}), "rows")
    assert signal.signal(signal.SIGTERM, before) is signal.default_int_handler  # no library has taken its place
    return folder, plan


def test_prefilled_turns_are_continued_token_exactly(made: tuple[Path, list[PlanRow]], tiny_model: Path) -> None:
    from trimtab.chat import Chat

    folder, plan = made
    written = generate(plan, folder, tiny_model, ENGINE, "rows")
    chat = Chat.from_folder(str(tiny_model))
    for row, generation in list(zip(plan, written, strict=True))[:4]:
        expected = _greedy(tiny_model, row)
        assert generation.num_prompt_tokens == len(chat.prompt_ids(row.system, row.prompt, row.prefill))
        assert generation.text == chat.tokenizer.decode(expected, skip_special_tokens=True)


def test_nucleus_of_one_token_is_greedy_at_any_temperature(made: tuple[Path, list[PlanRow]], tiny_model: Path) -> None:
    folder, plan = made
    texts = {row.id: row.text for row in generate(plan, folder, tiny_model, ENGINE, "rows")}
    assert [texts[f"sure{i}"] for i in range(4)] == [texts[f"row{i:03d}"] for i in range(4)]


@pytest.mark.parametrize("top_p", [0.05, 0.7, 0.95])
@pytest.mark.parametrize("spread", [0.1, 3.0, 6.0])
def test_nucleus_holds_the_tokens_of_vllms_top_p(spread: float, top_p: float) -> None:
    """Flat rows, whose nucleus is larger than what is picked, and steep ones; rows without one stay as they are."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    from trimtab.engine.nucleus import Nucleus

    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0)) * spread
    logits[0] = 0.001 * logits[0]
    nucleus, params = Nucleus(None, None, False), SamplingParams(extra_args={"nucleus": top_p})
    rows = [(row, params if row % 3 else SamplingParams(), None, []) for row in range(8)]
    nucleus.update_state(BatchUpdate(batch_size=8, removed=[], added=rows, moved=[]))
    with_one = torch.tensor([row for row in range(8) if row % 3])
    expected = logits.clone()
    expected[with_one] = apply_top_k_top_p(logits[with_one], None, torch.full((len(with_one),), top_p))
    assert torch.equal(nucleus.apply(logits.clone()), expected)
    nucleus.update_state(BatchUpdate(batch_size=0, removed=list(range(8)), added=[], moved=[]))
    assert torch.equal(nucleus.apply(logits.clone()), logits)


def test_row_that_does_not_fit_carries_its_error_and_the_others_live(
    made: tuple[Path, list[PlanRow]], tiny_model: Path
) -> None:
    folder, plan = made
    written = generate(plan, folder, tiny_model, ENGINE, "rows")
    assert written[-1].error
    assert [row.error for row in written[:-1] if row.error] == []


def test_finished_plan_starts_no_engine(made: tuple[Path, list[PlanRow]], tiny_model: Path) -> None:
    folder, plan = made
    before = sorted(path.name for path in (folder / "generations").iterdir())
    generate(plan, folder, Path("/nonexistent"), ENGINE, "rows")
    assert sorted(path.name for path in (folder / "generations").iterdir()) == before


def test_engines_that_leave_no_cpu_to_read_with_are_refused(
    tiny_model: Path, ray_session: None, tmp_path: Path
) -> None:
    """They would wait for ever: Ray starts the engines first, and reading asks for a CPU of its own."""
    from trimtab.cluster import most_cpus

    total = most_cpus()
    assert total
    with pytest.raises(InputError, match=f"engine.num_actors.*raise ray.num_cpus to {total + 1}"):
        generate(_plan(3), tmp_path / "out", tiny_model, ENGINE.model_copy(update={"num_actors": total}), "rows")


def test_longer_plan_generates_only_what_is_missing(vllm_server: str, tmp_path: Path, ray_session: None) -> None:
    folder, plan, engine = tmp_path / "out", _plan(5), OpenAIEngine(base_url=vllm_server, model="tiny")
    generate(plan, folder, None, engine, "rows")
    parts = set((folder / "generations").glob("*.parquet"))
    more = [*plan, *(row.model_copy(update={"id": f"more{i}"}) for i, row in enumerate(plan[:3]))]
    written = generate(more, folder, None, engine, "rows")
    new = set((folder / "generations").glob("*.parquet")) - parts
    import pyarrow.parquet as pq

    assert sorted(i for part in new for i in pq.read_table(part)["id"].to_pylist()) == ["more0", "more1", "more2"]
    assert len({row.id for row in written}) == len(more)


def test_rows_on_which_an_endpoint_failed_are_asked_again_by_the_next_call(tmp_path: Path, ray_session: None) -> None:
    status = {"What is 0?": 500, "What is 1?": 403, "What is 3?": 503}

    def script(call: Call) -> Answer:
        asked = call.body["messages"][1]["content"]
        return fails(status[asked]) if asked in status else says(f"{asked} Again?")

    folder, plan = tmp_path / "out", _plan(5)
    with JudgeServer(script) as server:
        engine = OpenAIEngine(base_url=server.url, model="m", max_retries=0)
        first = generate(plan, folder, None, engine, "rows")
        assert [bool(row.error) for row in first] == [True, True, False, True, False]
        assert len(server.calls) == 5
        del status["What is 3?"]
        second = generate(plan, folder, None, engine, "rows")
        assert [bool(row.error) for row in second] == [True, True, False, False, False]
        assert second[3].text == "What is 3? Again?"
        assert len(server.calls) == 5 + 2, "a refusal would only come again"
        (folder / "retries" / "001" / "generations" / "torn.parquet").write_bytes(b"PAR1")
        del status["What is 0?"]
        third = generate(plan, folder, None, engine, "rows")
        assert [bool(row.error) for row in third] == [False, True, False, False, False]
        assert len(server.calls) == 5 + 2 + 1
        assert generate(plan, folder, None, engine, "rows") == third
        assert len(server.calls) == 5 + 2 + 1
    asked = [[row.id for row in read_rows(folder / "retries" / name / "plan", PlanRow)] for name in ("001", "002")]
    assert asked == [["row000", "row003"], ["row000"]]


def test_two_rows_of_one_id_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    plan = _plan(2)
    with pytest.raises(InputError, match="plan: row000: two rows have this id"):
        generate([plan[0], plan[0]], tmp_path / "out", tiny_model, ENGINE, "rows")
    assert not (tmp_path / "out").exists()
