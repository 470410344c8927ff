"""The seam to EleutherAI's lm-eval-harness: a job in, plain values out. It runs in a process of Ray's.

The tasks, their prompts, their scores and standard errors are the harness's own. What a user can get wrong (a task that
nobody knows, data that is not here) becomes one line. What it says is taken apart in ``harness_results``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimtab.config import InputError
from trimtab.evaluation.harness_results import Found, taken_apart

EXTRA = "trimtab[ability]"
GENERATES = "generate_until"


@dataclass(frozen=True)
class Job:
    """A model and what it is asked: plain values, since it goes to another process."""

    backend: str
    """The harness's name of the kind of model: hf, vllm, local-completions, local-chat-completions."""
    arguments: dict[str, Any]
    """The harness's arguments of that kind."""
    tasks: tuple[str, ...]
    tasks_folder: str | None
    responses: str
    """Folder where answers are kept until the end, so that an interrupted job goes on."""
    num_fewshot: int | None = None
    max_documents: int | None = None
    chat_template: bool = False
    batch_size: int | str = 1
    device: str | None = None
    seed: int = 1234
    cores: int | None = None
    """Cores to compute on; none: all that this process may use."""
    api_key_env: str | None = None
    """For an endpoint: the variable that holds the key."""


class Chosen(NamedTuple):
    """The tasks that were asked for, loaded with their data."""

    manager: Any
    parts: dict[str, tuple[Any, ...]]
    """By the name asked for: a group, a task, or the tasks of a tag."""

    @property
    def tasks(self) -> dict[str, Any]:
        """All single tasks by name."""
        return {task.task_name: task for part in self._all_parts() for task in leaves(part)}

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The names of the tasks of each group, and of each task itself."""
        groups = [part for part in self._all_parts() if _is_group(part)]
        groups += [inner for group in groups for inner in group.get_all_groups()]
        found = {group.name: tuple(task.task_name for task in leaves(group)) for group in groups}
        return found | {name: (name,) for name in self.tasks}

    @property
    def asked(self) -> frozenset[str]:
        """What answers the names asked for: a group where it has numbers of its own, else its tasks."""
        return frozenset(
            name for part in self._all_parts()
            for name in ([part.name] if _is_group(part) and part.has_aggregation
                         else [task.task_name for task in leaves(part)])
        )  # fmt: skip

    def _all_parts(self) -> Iterator[Any]:
        for parts in self.parts.values():
            yield from parts


def measure(job: Job) -> Found:
    """Ask the model all tasks. A job that was interrupted goes on from the answers that it kept.

    Raises:
        InputError: the harness is not installed, a task is not known, can't be loaded or doesn't fit the model, or an
            endpoint doesn't answer.
    """
    require_installed()
    chosen = load_tasks(job.tasks, job.tasks_folder)
    refuse_what_does_not_fit(job, chosen)
    results = _run(job, chosen)
    shutil.rmtree(job.responses, ignore_errors=True)
    return taken_apart(results, chosen.members, chosen.asked)


def require_installed() -> None:
    """The harness is there.

    Raises:
        InputError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise InputError("tasks", "lm_eval", "this package is not installed", f"pip install '{EXTRA}'")


def load_tasks(names: Sequence[str], folder: str | None) -> Chosen:
    """The tasks with their data; groups hold theirs.

    Raises:
        InputError: a name is not known, stands there twice or is part of another, or a task can't be loaded.
    """
    manager = _manager(names, folder)
    for name in names:
        if name not in manager.task_index:
            where = f"the harness or of {folder}" if folder else "the harness"
            remedy = "lm_eval ls tasks shows its names; a folder of your own YAML files is tasks_folder"
            raise InputError("tasks", name, f"is no task, group or tag of {where}", remedy)
    parts = {name: _loaded(manager, name) for name in names}
    seen: dict[str, str] = {}
    for name, found in parts.items():
        for task in (task.task_name for part in found for task in leaves(part)):
            if seen.setdefault(task, name) != name:
                raise InputError("tasks", name, f"holds {task}, which {seen[task]} holds too", "give one of them")
    return Chosen(manager, parts)


def _manager(names: Sequence[str], folder: str | None) -> Any:
    """The index of tasks; where the folder alone has them all, the harness's 14,000 others are not read (10 s)."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if all(name in own.task_index and own.task_index[name].kind is Kind.TASK for name in names):
            return own
    return TaskManager(include_path=folder)


def _loaded(manager: Any, name: str) -> tuple[Any, ...]:
    """What a name stands for. Whatever fails here is the task's own files or data."""
    try:
        loaded = manager.load([name])
    except OSError as error:
        problem = f"its data is not on this machine and can't be fetched ({_first_line(error)})"
        remedy = "fetch it where there is a network and copy the folder of HF_HOME, or leave the task out"
        raise InputError("tasks", name, problem, remedy) from error
    except ImportError as error:
        problem = f"needs a package that is not installed ({_first_line(error)})"
        raise InputError("tasks", name, problem, "install it, or leave the task out") from error
    except Exception as error:
        problem = f"can't be loaded ({type(error).__name__}: {_first_line(error)})"
        raise InputError("tasks", name, problem, "mend its files or data, or leave the task out") from error
    groups = loaded.get("groups", {})
    return (groups[name],) if name in groups else tuple(loaded["tasks"].values())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def leaves(part: Any) -> tuple[Any, ...]:
    """The single tasks of a task or a group."""
    return tuple(part.get_all_tasks()) if _is_group(part) else (part,)


def _is_group(part: Any) -> bool:
    return hasattr(part, "get_all_tasks")


def refuse_what_does_not_fit(job: Job, chosen: Chosen) -> None:
    """Tasks that this model can't be asked.

    Raises:
        InputError: naming the task.
    """
    for name, task in chosen.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError("tasks", name, "runs code that the model writes", "leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise InputError("tasks", name, "shows pictures or sound, for which there is no model here", "leave it out")
        if job.backend == "local-chat-completions" and task.OUTPUT_TYPE != GENERATES:
            problem = "needs likelihoods, which an endpoint's chat doesn't give"
            raise InputError("tasks", name, problem, "set chat_template=false, or leave the task out")


def _run(job: Job, chosen: Chosen) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate

    if job.api_key_env is not None:
        os.environ["OPENAI_API_KEY"] = os.environ.get(job.api_key_env) or "none"  # where the harness looks for it
    if job.device == "cpu":
        import torch

        torch.set_num_threads(job.cores or len(os.sched_getaffinity(0)))
    with _endpoint_errors(job):
        return dict(simple_evaluate(
            model=job.backend, model_args=_with_tokenizer(job, chosen), task_manager=chosen.manager,
            tasks=[part for parts in chosen.parts.values() for part in parts], num_fewshot=job.num_fewshot,
            batch_size=job.batch_size, device=job.device, use_cache=f"{job.responses}/answers", limit=job.max_documents,
            apply_chat_template=job.chat_template, fewshot_random_seed=job.seed,
        ))  # fmt: skip


def _with_tokenizer(job: Job, chosen: Chosen) -> dict[str, Any]:
    """The model's arguments; for plain completions with the tokenizer: the one given, else the endpoint's own."""
    if job.backend != "local-completions" or job.arguments.get("tokenizer"):
        return job.arguments
    from lm_eval.utils import check_remote_tokenizer_support

    if check_remote_tokenizer_support(job.arguments["base_url"], auth_token=os.environ["OPENAI_API_KEY"]):
        return job.arguments | {"tokenizer_backend": "remote", "auth_token": os.environ["OPENAI_API_KEY"]}
    needing = next((name for name, task in chosen.tasks.items() if task.OUTPUT_TYPE != GENERATES), None)
    if needing is not None:
        problem = f"{needing} needs the model's tokenizer, and this endpoint doesn't give it"
        raise InputError("tokenizer", None, problem, "give the model's folder or Hub id as tokenizer")
    return job.arguments | {"tokenizer_backend": "none"}


@contextlib.contextmanager
def _endpoint_errors(job: Job) -> Iterator[None]:
    """What an endpoint does wrong, after the harness's own retries, in one line."""
    if job.api_key_env is None:
        yield
        return
    import aiohttp
    import requests

    try:
        yield
    except (requests.RequestException, aiohttp.ClientError, TimeoutError) as error:
        problem = f"does not answer as it should ({type(error).__name__}: {_first_line(error)})"
        remedy = "check the address, the model's name and the key; the same command goes on"
        raise InputError("engine.base_url", job.arguments["base_url"], problem, remedy) from error
