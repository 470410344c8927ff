"""``trimtab serve``: which models, behind which keys, presets and limits, and how many replicas."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from trimtab.cluster import RayConfig
from trimtab.config import Config, InputError
from trimtab.engine import VLLMEngine
from trimtab.files import LocalPath
from trimtab.policy.settings import GateSettings


class ServedModel(Config):
    """A model and its replicas: an application of Ray Serve."""

    model: str = "smollm2-135m"
    """The model to serve: a folder, a registered name@version or name@alias, a Hub id or the embedded default."""
    name: str = Field("trimtab", pattern=r"^[A-Za-z0-9._-]+$")
    """The model's name in requests and in /v1/models."""
    min_replicas: int = Field(1, ge=0)
    """Least replicas of the engine; 0: none while nobody asks, and the first request waits for one to start."""
    max_replicas: int | None = Field(None, ge=1)
    """Most replicas; none: as many as the least, or one."""
    target_ongoing_requests: int = Field(32, ge=1)
    """Requests that a replica should have at a time; with more, replicas are added up to the most."""
    max_ongoing_requests: int = Field(128, ge=1)
    """Requests in one replica, those that wait for its engine included; more are refused with 429."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that may wait where no replica is up or all are full; more are refused with 429."""
    routing: Literal["balanced", "prefix_aware"] = "balanced"
    """Which replica gets a request: the one with the fewest, or one whose cache has the beginning of its text."""
    adapters: dict[str, LocalPath] = Field(default_factory=dict)
    """LoRA adapters by name: folders that every replica can read; requests choose one as ``name:adapter``."""
    engine: VLLMEngine = VLLMEngine()

    @property
    def most_replicas(self) -> int:
        """Replicas when there are most."""
        return self.max_replicas or max(1, self.min_replicas)

    @model_validator(mode="after")
    def _replicas_are_in_order(self) -> Self:
        if self.most_replicas < self.min_replicas:
            problem = f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}"
            raise PydanticCustomError("replicas", "{problem}", {"problem": problem, "remedy": "raise max_replicas"})
        return self


class ServeConfig(ServedModel):
    """``trimtab serve``: the endpoint."""

    others: tuple[ServedModel, ...] = ()
    """Further models, each an application of its own at /NAME/v1."""
    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with a key file."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    keys: LocalPath | None = None
    """Key file (``trimtab keys create``), which every replica must be able to read; it is read anew when it changes.
    None: harmless only, and on loopback alone."""
    throwaway_key: bool = False
    """Make a key for this run that may choose every preset, say it, and remove it at the end."""
    presets: LocalPath | None = None
    """YAML file of presets that add to the built-in ones; ``trimtab serve`` reads it anew when it changes."""
    force_presets: bool = False
    """Serve presets under which the model was not trained."""
    audit: LocalPath | None = None
    """Audit log: a line for each decision, on the node of the replica; none: no log."""
    budgets: LocalPath | None = None
    """Where the tokens that keys took today are kept over restarts; none: below ``$TRIMTAB_HOME``."""
    gate: GateSettings = GateSettings()
    direct: bool = True
    """The gate stands in the replica and HAProxy hands requests straight to it; false: Ray Serve's ordinary ingress."""
    drain_s: float = Field(600, gt=0)
    """How long a replica that goes may take to end its requests; longer than the longest stream."""
    health_check_s: float = Field(2, gt=0)
    """Time between looks at the engine; three that fail replace the replica."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [self.name, *(other.name for other in self.others)]
        if len(set(names)) < len(names):
            remedy = {"problem": f"two models have one name: {', '.join(names)}", "remedy": "set another name"}
            raise PydanticCustomError("names", "{problem}", remedy)
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_host(host: str) -> None:
    """Raise where others than this machine would reach a server without keys.

    Raises:
        InputError: the address isn't loopback.
    """
    if not is_loopback(host):
        problem = "a server without keys listens on loopback only"
        raise InputError("host", host, problem, "make a key file (trimtab keys create) and name it in keys")
