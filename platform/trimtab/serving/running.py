"""Starting and stopping the endpoint: Ray Serve, its applications, a throw-away key, and presets that change."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from trimtab import cluster, proxy
from trimtab.config import InputError
from trimtab.console import say
from trimtab.policy import keys
from trimtab.policy.audit import AuditFile
from trimtab.policy.keys import KeyFile
from trimtab.serving.apps import applications
from trimtab.serving.config import ServeConfig, refuse_open_host
from trimtab.serving.gating import own_presets
from trimtab.serving.limits import end_limits

RELOAD_EVERY_S = 1.0


@contextlib.contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """Serve until the block ends; gives the API's base URL.

    Raises:
        InputError: the port is taken, the address needs keys, or the model or a file can't be used.
    """
    if config.keys is None:
        refuse_open_host(config.host)
    refuse_taken_port(config.host, config.port)
    if config.ray.where is None:
        refuse_unusable_files(config)
    cluster.connect(config.ray)
    from ray import serve  # reads its settings from the environment, which has them now

    _say_how(config)
    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        deploy(config)
        yield f"http://{config.host}:{config.port}/v1"
    finally:
        _end(config)


def refuse_unusable_files(config: ServeConfig) -> None:
    """Raise now where each replica would, after a minute; on a cluster the files are those of its nodes.

    Raises:
        InputError: the keys, the presets, the audit log, the budgets or an adapter can't be used.
    """
    if config.keys is not None:
        KeyFile(config.keys)
    own_presets(config.presets)
    if config.audit is not None:
        AuditFile(config.audit).close()
    if config.budgets is not None:
        _require_folder("budgets", config.budgets)
    for model in (config, *config.others):
        for name, path in model.adapters.items():
            if not (path / "adapter_config.json").is_file():
                problem = "is no folder of a LoRA adapter (adapter_config.json)"
                raise InputError(f"adapters.{name}", path, problem, "name one that peft has saved")


def _require_folder(field: str, path: Path) -> None:
    """Make the folder of a file that will be written."""
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        problem = f"its folder can't be made ({error.strerror})"
        raise InputError(field, path, problem, "choose a file that can be written") from error
    if not os.access(folder, os.W_OK):
        raise InputError(field, path, "its folder can't be written", "choose a file that can be written")


def _end(config: ServeConfig) -> None:
    """Requests in flight are ended first. On a cluster, Serve itself goes on, with what others have in it."""
    from ray import serve

    if config.ray.where is None:
        serve.shutdown()
    else:
        for model in (config, *config.others):
            serve.delete(model.name)
    end_limits(f"limits:{config.name}")


def deploy(config: ServeConfig) -> None:
    """Bring the applications to this configuration: new ones start, changed ones are replaced, presets handed over.

    Raises:
        InputError: a model or a file can't be used; the applications stay as they are.
    """
    from ray import serve

    for name, (app, route) in applications(config).items():
        serve.run(app, name=name, route_prefix=route)


def _say_how(config: ServeConfig) -> None:
    """Say where the cluster has no proxy for direct streaming; the gate stands in the replica all the same."""
    if config.direct and not cluster.has_direct_proxy():
        say(f"  this cluster's nodes lack {proxy.DIRECT_PROXY}=1: requests take the way through Ray Serve's own proxy")


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


@contextlib.contextmanager
def throwaway_key(config: ServeConfig) -> Iterator[tuple[ServeConfig, str]]:
    """The configuration with a key file of one key that may choose every preset, and its secret; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="trimtab-keys-") as folder:
        path = Path(folder) / "keys.json"
        secret = keys.create(path, keys.Grant(presets=(keys.ALL_PRESETS,)), "throw-away")[1]
        yield config.model_copy(update={"keys": path, "throwaway_key": False}), secret


def run(config: ServeConfig) -> None:
    """Serve until interrupted, by Ctrl-C or as a service manager does it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        if config.throwaway_key:
            config, secret = stack.enter_context(throwaway_key(config))
            say(f"key of this run, for all presets: {secret}")
        elif config.keys is None:
            say("no key file: everybody on this machine may ask, harmless only (trimtab keys create makes keys)")
        say(f"starting {config.name} ({config.model}); this takes about a minute")
        url = stack.enter_context(running(config))
        say(f"serving on {url}, and a page to try it on {url.removesuffix('v1')}; stop with Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            _reload_presets(config)
        say("stopping: requests in flight are ended first")
    say("stopped")


def _reload_presets(config: ServeConfig) -> None:
    """Hand presets over whenever their file changes, for ever."""
    seen = _state(config.presets)
    while not threading.Event().wait(RELOAD_EVERY_S):
        state = _state(config.presets)
        if state == seen:
            continue
        seen = state
        try:
            deploy(config)
        except InputError as error:
            say(f"the presets that were go on: {error}")
        else:
            say(f"presets of {config.presets} are served")


def _state(path: Path | None) -> tuple[int, int] | None:
    """What changes when a file does; None: it isn't there."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size) if found else None
