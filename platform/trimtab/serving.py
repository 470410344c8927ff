"""The Ray Serve application: vLLM behind an OpenAI-compatible ingress, with the gate in front of it.

Only ``/v1/chat/completions`` and ``/v1/models`` are served; there is no CORS header. The safety
configuration is chosen by ``safety`` in the request's body (none: harmless).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from trimtab import cluster, models
from trimtab.chat import Chat
from trimtab.cluster import RayConfig
from trimtab.config import Config, InputError
from trimtab.console import say
from trimtab.engine import VLLMEngine, bundles, engine_env, engine_kwargs
from trimtab.policy.gate import CHAT, MODELS, Gate

APP_NAME = "trimtab"


class ServeConfig(Config):
    """``trimtab serve``: the endpoint."""

    model: str = "smollm2-135m"
    """The model to serve: a folder, a Hub id or the embedded default."""
    name: str = Field("trimtab", pattern=r"^[A-Za-z0-9._-]+$")
    """The model's name in requests and in /v1/models."""
    host: str = "127.0.0.1"
    """Address to listen on. Anybody who reaches it can switch the configuration: keep it on loopback."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    num_replicas: int = Field(1, ge=1)
    """Replicas of the engine."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that one replica works on at a time."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that may wait; more are refused."""
    engine: VLLMEngine = VLLMEngine()
    ray: RayConfig = RayConfig()


def build_app(config: ServeConfig) -> Any:
    """The Ray Serve application of a configuration: gated ingress and engine replicas.

    Raises:
        InputError: the model can't be used.
    """
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

    folder = models.resolve(config.model)
    routes = {"models": lambda app: app.get(MODELS), "chat": lambda app: app.post(CHAT)}
    ingress = make_fastapi_ingress(OpenAiIngress, endpoint_map=routes, app=_fastapi(str(folder), config.name))
    engine = _llm_config(config, str(folder))
    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}}
    return serve.deployment(ingress, **options).bind(
        llm_deployments={config.name: build_llm_deployment(engine)},
        model_cards={config.name: to_model_metadata(config.name, engine)},
    )


def _fastapi(folder: str, model: str) -> Any:
    """The ingress's web app: Ray's request ids and OpenAI-format errors, our gate outermost, nothing else."""
    from fastapi import FastAPI
    from ray.llm._internal.serve.core.ingress.middleware import (
        SetRequestIdMiddleware,
        add_exception_handling_middleware,
    )

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_exception_handling_middleware(app)
    app.add_middleware(SetRequestIdMiddleware)
    app.add_middleware(gate_for_folder, folder=folder, model=model)
    return app


def gate_for_folder(app: Any, folder: str, model: str) -> Gate:
    """The gate with the model's own tokenizer, built in the replica."""
    return Gate(app, Chat.from_folder(folder), model)


def _llm_config(config: ServeConfig, folder: str) -> Any:
    from ray.serve.llm import LLMConfig

    engine = config.engine
    return LLMConfig(
        model_loading_config={"model_id": config.name, "model_source": folder},
        engine_kwargs=engine_kwargs(engine),
        runtime_env={"env_vars": engine_env(engine)},
        placement_group_config={"bundles": bundles(engine)},
        deployment_config={
            "num_replicas": config.num_replicas,
            "max_ongoing_requests": config.max_ongoing_requests,
            "max_queued_requests": config.max_queued_requests,
        },
        log_engine_metrics=False,
    )


@contextlib.contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """Serve until the block ends; gives the API's base URL.

    Raises:
        InputError: the port is taken or the model can't be used.
    """
    from ray import serve

    app = build_app(config)
    refuse_taken_port(config.host, config.port)
    cluster.connect(config.ray)
    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
        yield f"http://{config.host}:{config.port}/v1"
    finally:
        serve.shutdown()


def refuse_taken_port(host: str, port: int) -> None:
    """Raise when something listens on this port already.

    Raises:
        InputError: the port is taken or the address isn't this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                "port", f"{host}:{port}", f"can't listen ({error.strerror})", "set another port"
            ) from error


def run(config: ServeConfig) -> None:
    """Serve until interrupted."""
    import threading

    say(f"starting {config.name} ({config.model}); this takes about a minute")
    with running(config) as url, contextlib.suppress(KeyboardInterrupt):
        say(f"serving on {url}; stop with Ctrl-C")
        threading.Event().wait()
    say("stopped")
