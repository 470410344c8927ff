"""From a configuration to Ray Serve applications: one for each model, direct or behind the ordinary ingress."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trimtab import __version__, models, registry
from trimtab.console import say
from trimtab.engine import bundles, engine_env, engine_kwargs
from trimtab.policy.gate import CHAT, HEALTH
from trimtab.policy.presets import configurations_of
from trimtab.policy.settings import GateSettings
from trimtab.serving.config import ServeConfig, ServedModel
from trimtab.serving.gating import Gating, own_presets, usable

NET = 128
"""Requests beyond the gate's bound that a replica still takes, to refuse them in OpenAI's format."""
RETRY_AFTER_S = 2.0
REPLICA_CPUS = 0.1
"""Logical CPUs of a replica besides its engine's: two of them must fit a small machine while one replaces the other."""


def applications(config: ServeConfig) -> dict[str, tuple[Any, str]]:
    """All applications of a configuration, with their routes; names are the models'.

    Raises:
        InputError: a model or a file can't be used.
    """
    main = config.name, (build_app(config), "/")
    return dict([main, *((other.name, (build_app(config, other), f"/{other.name}")) for other in config.others)])


def build_app(config: ServeConfig, served: ServedModel | None = None) -> Any:
    """The Ray Serve application of one model.

    Args:
        served: one of ``config.others``; none: the first model.

    Raises:
        InputError: the model or a file can't be used.
    """
    served = served or config
    folder = models.resolve(served.model)
    gating = make_gating(config, served, folder)
    own = own_presets(config.presets)
    line = usable(own, gating)[1]
    if line:
        say(f"  {served.name}: {line}")
    build = _direct if config.direct else _behind_ingress
    return build(config, served, _llm_config(config, served, folder), gating, {"presets": own})


def make_gating(config: ServeConfig, served: ServedModel, folder: Path) -> Gating:
    """What the gates of a model's replicas are made from."""
    learned = configurations_of(folder)
    budgets = config.budgets or registry.home() / "budgets" / f"{config.name}.json"
    return Gating(
        folder=str(folder), model=served.name, keys=config.keys and config.keys.absolute(),
        audit=config.audit and config.audit.absolute(), limits=f"limits:{config.name}", budgets=budgets.absolute(),
        most_ongoing=served.max_ongoing_requests,
        settings=gate_settings(config.gate, served), learned=None if learned is None else tuple(learned),
        force_presets=config.force_presets,
    )  # fmt: skip


def gate_settings(settings: GateSettings, served: ServedModel) -> GateSettings:
    """The gate's settings with what the engine says: its context, its adapters, and whether it can take a seed."""
    engine = served.engine
    return settings.model_copy(update={
        "context_tokens": settings.context_tokens or engine.max_model_len,
        "keep_seed": settings.keep_seed and engine.accelerators > 0,  # vLLM 0.29 on CPU dies of some seeded requests
        "adapters": tuple(served.adapters),
    })  # fmt: skip


def _direct(config: ServeConfig, served: ServedModel, llm: Any, gating: Gating, user_config: dict[str, Any]) -> Any:
    """Replicas that answer themselves. Without a request router HAProxy takes the replica with the fewest requests."""
    from ray import serve
    from ray.serve.llm import build_llm_deployment

    from trimtab.serving.replica import GatedServer

    version = _version(config, served, gating)
    app = _versioned(version, build_llm_deployment(
        llm, bind_kwargs={"gating": gating.model_dump(mode="json")}, deployment_cls=serve.ingress()(GatedServer),
        override_serve_options=_options(config, served) | {"user_config": user_config},
    ))  # fmt: skip
    return app if served.routing == "balanced" else _with_router(app, version)


def _with_router(app: Any, version: str) -> Any:
    """As Ray's own builder does it for direct streaming: HAProxy asks the router which replica gets a request."""
    from ray import serve
    from ray.llm._internal.serve.core.ingress.router import LLMRouter

    router = serve.deployment(LLMRouter, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    bound = _versioned(version, router.bind(server=app, llm_config=None, base_model_id=None))
    return app._with_ingress_request_router(bound)


def _behind_ingress(
    config: ServeConfig, served: ServedModel, llm: Any, gating: Gating, user_config: dict[str, Any]
) -> Any:
    """Ray Serve's ordinary ingress with the gate in front, and the engine's replicas behind."""
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.ingress import make_fastapi_ingress

    from trimtab.serving.replica import GatedIngress

    routes = {"health": lambda app: app.get(HEALTH), "chat": lambda app: app.post(CHAT)}
    ingress = make_fastapi_ingress(GatedIngress, endpoint_map=routes, app=_web_app())
    version = _version(config, served, gating)
    engine = _versioned(version, build_llm_deployment(llm, override_serve_options=_options(config, served)))
    most = served.max_ongoing_requests * served.most_replicas
    deployment = serve.deployment(
        ingress, name="gate", max_ongoing_requests=most + NET, ray_actor_options={"num_cpus": REPLICA_CPUS},
        graceful_shutdown_timeout_s=config.drain_s, max_surge_percent=100, user_config=user_config,
        logging_config={"enable_access_log": False},
    )  # fmt: skip
    return _versioned(version, deployment.bind(
        llm_deployments={served.name: engine}, model_cards={served.name: to_model_metadata(served.name, llm)},
        gating=gating.model_copy(update={"most_ongoing": most}).model_dump(mode="json"),
    ))  # fmt: skip


def _versioned(version: str, app: Any) -> Any:
    """The application with a version that says when its replicas start anew; Serve's own is another one each time."""
    app._bound_deployment = app._bound_deployment.options(version=version, _internal=True)
    return app


def _web_app() -> Any:
    """The ingress's web app: Ray's request ids and OpenAI-format errors, our gate outermost, nothing else."""
    from fastapi import FastAPI
    from ray.llm._internal.serve.core.ingress.middleware import (
        SetRequestIdMiddleware,
        add_exception_handling_middleware,
    )

    from trimtab.serving.replica import GateMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_exception_handling_middleware(app)
    app.add_middleware(SetRequestIdMiddleware)
    app.add_middleware(GateMiddleware)
    return app


def _llm_config(config: ServeConfig, served: ServedModel, folder: Path) -> Any:
    from ray.serve.llm import LLMConfig

    engine, adapters = served.engine, {}
    if served.adapters:
        named = [
            {"name": f"{served.name}:{name}", "path": str(path.absolute())} for name, path in served.adapters.items()
        ]
        adapters = {"enable_lora": True, "max_loras": len(named), "lora_modules": named}
    return LLMConfig(
        model_loading_config={"model_id": served.name, "model_source": str(folder)},
        engine_kwargs=adapters | engine_kwargs(engine),
        runtime_env={"env_vars": engine_env(engine)},
        placement_group_config={"bundles": bundles(engine)},
        deployment_config={"ray_actor_options": {"num_cpus": REPLICA_CPUS}},
        log_engine_metrics=False,
    )


def _options(config: ServeConfig, served: ServedModel) -> dict[str, Any]:
    """Serve's options of the engine's deployment."""
    from ray.serve.config import BackpressureConfig, RequestRouterConfig

    fixed = served.most_replicas == served.min_replicas
    number = {"num_replicas": served.min_replicas} if fixed else {"autoscaling_config": {
        "min_replicas": served.min_replicas, "max_replicas": served.most_replicas,
        "target_ongoing_requests": served.target_ongoing_requests,
    }}  # fmt: skip
    prefix = "ray.serve.llm.request_router:PrefixCacheAffinityRouter"
    router = {"request_router_config": RequestRouterConfig(request_router_class=prefix)}
    return number | (router if served.routing == "prefix_aware" else {}) | {
        "name": served.name,
        "max_ongoing_requests": served.max_ongoing_requests + NET,
        "max_queued_requests": served.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "graceful_shutdown_timeout_s": config.drain_s, "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": config.health_check_s, "health_check_timeout_s": 10.0,
        "max_surge_percent": 100,  # a new replica is up before an old one goes
        "logging_config": {"enable_access_log": False},
    }  # fmt: skip


def _version(config: ServeConfig, served: ServedModel, gating: Gating) -> str:
    """What makes replicas start anew: everything but the presets, which Serve hands to those that run."""
    recipe = {
        "gating": gating.model_dump(mode="json"), "engine": served.engine.model_dump(mode="json"),
        "adapters": {name: str(path) for name, path in served.adapters.items()},
        "model": _stamp(Path(gating.folder)), "trimtab": __version__,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """What changes when a model's files do, without reading them."""
    found = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in found]
