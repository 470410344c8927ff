"""Ray Serve's LLM server with the gate inside: what HAProxy reaches is the gate, and behind it vLLM's own app.

Loaded by Ray Serve alone, in the processes that build and run the application.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress

from trimtab.policy.gate import Gate
from trimtab.serving.config import refuse_open_host
from trimtab.serving.gating import Gated, Gating


class GatedServer(LLMServer):
    """An engine replica that answers requests itself, through the gate."""

    async def __init__(self, llm_config: LLMConfig, gating: dict[str, Any]) -> None:  # type: ignore[misc]  # as Ray's
        self.gated = make_gated(gating)  # first: what can't be used is said before the engine is loaded
        llm_config.get_or_create_callback().ctx.run_init_node = False  # a folder: no process to download it with
        await super().__init__(llm_config)

    async def __serve_build_asgi_app__(self) -> Any:
        return self.gated.gate(await super().__serve_build_asgi_app__())

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve's hook: new presets without a restart."""
        await self.gated.configure(user_config)


class GatedIngress(OpenAiIngress):
    """Ray Serve's ordinary ingress; the gate is a middleware of its web app."""

    def __init__(self, *args: Any, gating: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _of_this_process["gated"] = make_gated(gating)

    async def health(self) -> dict[str, str]:
        """The ingress is up; whether the engines are is Serve's to watch."""
        return {"status": "ok"}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve's hook: new presets without a restart."""
        await _of_this_process["gated"].configure(user_config)


_of_this_process: dict[str, Gated] = {}
"""The gate's parts, made by the ingress replica and used by the middleware of its web app."""


class GateMiddleware:
    """The gate as middleware of the ingress's web app, which is put together before the replica is."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._gate: Gate | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" and "gated" not in _of_this_process:
            await self._app(scope, receive, send)
            return
        if self._gate is None:
            self._gate = _of_this_process["gated"].gate(self._app)
        await self._gate(scope, receive, send)


def make_gated(gating: dict[str, Any]) -> Gated:
    """The gate's parts in this replica; without keys only where Serve listens on loopback.

    Raises:
        InputError: Serve listens elsewhere and there are no keys, or a file can't be used.
    """
    from ray.serve.context import _get_global_client

    resolved = Gating.model_validate(gating)
    if resolved.keys is None:
        refuse_open_host(_get_global_client().http_config.host or "0.0.0.0")
    return Gated(resolved)
