"""The gate in front of a bare vLLM server, which takes a middleware by its class's name and hands it no settings:

    TRIMTAB_GATE=gate.yaml python -m vllm.entrypoints.openai.api_server --middleware trimtab.policy.middleware.VLLMGate

A file that can't be used ends the server at its start with one line; until then, and if its web server has no start,
nothing passes.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from trimtab.chat import Chat
from trimtab.config import Config, InputError, load
from trimtab.console import say
from trimtab.policy.answers import refuse
from trimtab.policy.audit import AuditFile, NoAudit
from trimtab.policy.gate import Gate
from trimtab.policy.keys import KeyFile
from trimtab.policy.limiter import InProcessLimiter
from trimtab.policy.metrics import PrometheusMetrics
from trimtab.policy.ports import App, Receive, Refused, Scope, Send
from trimtab.policy.preparing import check_presets
from trimtab.policy.presets import Presets, configurations_of, require_learned
from trimtab.policy.settings import GateSettings

VARIABLE = "TRIMTAB_GATE"


class VLLMGateConfig(Config):
    """What the file says that ``TRIMTAB_GATE`` names."""

    model: Path
    """The folder of the served model: the gate needs its tokenizer and chat template."""
    name: str = Field("trimtab", pattern=r"^[A-Za-z0-9._-]+$")
    """The model's name in requests: vLLM's --served-model-name."""
    keys: Path
    """The key file, made by `trimtab keys create`."""
    presets: Path | None = None
    """A file of presets beside the built-in ones."""
    force_presets: bool = False
    """Serve presets that the model was never trained under."""
    audit: Path | None = None
    """The audit log; none: there is none."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Prometheus metrics on this port of loopback; none: there are none."""
    settings: GateSettings = GateSettings()


class VLLMGate:
    """The middleware class that vLLM makes with nothing but the app behind it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._gate: Gate | None = None
        self._problem = ""
        try:
            self._gate = build(app, read_config())
        except InputError as error:
            self._problem = str(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gate is not None:
            await self._gate(scope, receive, send)
        elif scope["type"] == "lifespan":
            await receive()
            say(f"trimtab gate: {self._problem}")
            await send({"type": "lifespan.startup.failed", "message": self._problem})
        elif scope["type"] == "http":
            await refuse(send, Refused(503, "no_gate", "the gate's configuration can't be used; see the server's log"))
        else:
            await send({"type": "websocket.close", "code": 1008})


def read_config() -> VLLMGateConfig:
    """The configuration in the file that the environment names.

    Raises:
        InputError: there is none, or it can't be used.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise InputError(VARIABLE, "not set", "names the gate's YAML file", f"set {VARIABLE}=gate.yaml")
    return load(VLLMGateConfig, Path(named))


def build(app: App, config: VLLMGateConfig) -> Gate:
    """The gate of a configuration, and its metrics' server.

    Raises:
        InputError: the model, the keys, the presets or the audit file can't be used, or the port is taken.
    """
    from prometheus_client import start_http_server

    presets, line = _offered(config)
    chat = _chat(config.model)
    check_presets(chat, presets)
    audit = AuditFile(config.audit) if config.audit else NoAudit()
    metrics = PrometheusMetrics()
    gate = Gate(
        app, chat, model=config.name, keys=KeyFile(config.keys), presets=presets, limiter=InProcessLimiter(),
        audit=audit, metrics=metrics, settings=config.settings,
    )  # fmt: skip
    if config.metrics_port is not None:
        try:
            start_http_server(config.metrics_port, addr="127.0.0.1", registry=metrics.registry)
        except OSError as error:
            problem = f"can't listen ({error.strerror})"
            raise InputError("metrics_port", config.metrics_port, problem, "set another port") from error
    if line:
        say(f"trimtab gate: {line}")
    return gate


def _offered(config: VLLMGateConfig) -> tuple[Presets, str | None]:
    """The file's own presets, and the built-in ones that the model has learned; and a line to say about them."""
    presets, learned = Presets.from_file(config.presets), configurations_of(config.model)
    if learned is not None and not config.force_presets:
        builtin, known = Presets.builtin(), presets.learned(learned)
        own = [name for name in presets.names if name not in builtin or presets[name] != builtin[name]]
        presets = presets.only([name for name in presets.names if name in known or name in own])
    return presets, require_learned(presets, learned, config.force_presets)


def _chat(folder: Path) -> Chat:
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError("model", folder, "is no model folder with a tokenizer", "name the folder that vLLM serves")
    return Chat.from_folder(str(folder))
