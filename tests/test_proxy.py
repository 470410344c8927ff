"""Ray Serve's proxy in a local Ray: ports and files of its own, and a start that keeps it private."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from trimtab import proxy

CONFIG = """frontend prometheus
    bind :{port}
    mode http
frontend http_frontend
    bind *:8000
listen stats
  bind *:{port}
  stats enable
"""


def test_every_local_ray_gets_ports_and_files_of_its_own() -> None:
    with proxy.private_folder() as one, proxy.private_folder() as other:
        first, second = proxy.environment(one, 2), proxy.environment(other, 2)
        ports = [name for name in first if name.endswith("_PORT")]
        assert len(ports) == 3
        assert len({first[name] for name in ports} | {second[name] for name in ports}) == 6
        places = [name for name, value in first.items() if value.startswith(one)]
        assert len(places) == 6
        assert all(second[name].startswith(other) for name in places)
        assert Path(one).stat().st_mode & 0o777 == 0o700


def test_sockets_in_the_proxys_folder_have_names_that_the_kernel_takes() -> None:
    """Ray puts a folder named after the node between, and HAProxy appends its process id while it starts."""
    with proxy.private_folder() as folder:
        socket = Path(proxy.environment(folder, 2)["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        assert len(str(socket.parent / ("n" * 56) / f"{socket.name}.4194304.tmp")) < 108


def test_pages_of_numbers_listen_on_loopback_and_the_endpoint_where_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "_binary", lambda: Path("/bin/echo"))
    starter = proxy.environment(str(tmp_path), 2)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(port=9101), encoding="utf-8")
    ran = subprocess.run([starter, "-db", "-f", str(config), "-sf", "7"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"-db -f {config} -sf 7\n"
    expected = CONFIG.format(port=9101).replace("bind :9101", "bind 127.0.0.1:9101").replace("*:9101", "127.0.0.1:9101")
    assert config.read_text(encoding="utf-8") == expected


def test_without_haproxy_serve_keeps_its_own_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "find_spec", lambda name: None)
    assert proxy.environment(str(tmp_path), 2) == {}
