"""One server of the serving benchmarks as a process of its own: ours, ours without the gate, or Ray's own builder.

It says its address as a JSON line, then does what JSON lines on its standard input ask, and stops when that ends.
vLLM's own server is a process of vLLM's, started by ``tests.bench._serving`` with the arguments that stand here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab import cluster, models
from trimtab.console import quiet, say
from trimtab.engine import VLLMEngine, bundles, engine_env, engine_kwargs
from trimtab.serving import ServeConfig, apps, running
from trimtab.serving.running import deploy


def main() -> None:
    """JSON arguments: ``side`` (one of SIDES), ``config`` (of ServeConfig), ``log`` (file)."""
    given = json.loads(sys.argv[1])
    config = ServeConfig.model_validate(given["config"])
    with quiet(Path(given["log"])), SIDES[given["side"]](config):
        say(json.dumps({"ready": True}))
        for line in sys.stdin:
            deploy(ServeConfig.model_validate(json.loads(line)))
            say(json.dumps({"deployed": True}))


@contextlib.contextmanager
def _ours(config: ServeConfig) -> Iterator[None]:
    with running(config):
        yield


@contextlib.contextmanager
def _ungated(config: ServeConfig) -> Iterator[None]:
    """The same direct app with Serve's same options, and vLLM's own app where the gate would stand."""
    from ray import serve
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.deployment import LLMServer

    cluster.connect(config.ray)
    llm = apps._llm_config(config, config, models.resolve(config.model))
    app = build_llm_deployment(
        llm, deployment_cls=serve.ingress()(LLMServer),
        override_serve_options=apps._options(config, config),
    )  # fmt: skip
    with _serving(config, app):
        yield


@contextlib.contextmanager
def _bare(config: ServeConfig) -> Iterator[None]:
    """``ray.serve.llm`` as it comes: its builder, its ingress, Ray Serve's own proxy, on a Ray of the same size."""
    import ray
    from ray.serve.llm import LLMConfig, build_openai_app

    for name, value in (cluster.RAY_ENV | cluster.LOCAL_ENV).items():
        os.environ.setdefault(name, value)
    ray.init(num_cpus=config.ray.local_cpus, include_dashboard=False, _temp_dir=str(config.ray.temp_dir))
    engine = config.engine
    llm = LLMConfig(
        model_loading_config={"model_id": config.name, "model_source": str(models.resolve(config.model))},
        engine_kwargs=engine_kwargs(engine), runtime_env={"env_vars": engine_env(engine)},
        placement_group_config={"bundles": bundles(engine)}, log_engine_metrics=False,
    )  # fmt: skip
    with _serving(config, build_openai_app({"llm_configs": [llm]})):
        yield


@contextlib.contextmanager
def _serving(config: ServeConfig, app: Any) -> Iterator[None]:
    from ray import serve

    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        serve.run(app, name=config.name, route_prefix="/")
        yield
    finally:
        serve.shutdown()


SIDES = {"ours": _ours, "ungated": _ungated, "bare_ray_serve": _bare}


def vllm_server(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    """Command and environment of vLLM's own server with the same engine."""
    engine: VLLMEngine = config.engine
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model",
               str(models.resolve(config.model)), "--served-model-name", config.name, "--host", config.host, "--port",
               str(config.port), "--disable-uvicorn-access-log", "--distributed-executor-backend", "mp"]  # fmt: skip
    for name, value in engine_kwargs(engine).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            command.append(flag)
        elif value is not False:
            command += [flag, str(value)]
    return command, engine_env(engine)


if __name__ == "__main__":
    main()
    cluster.disconnect()
