"""Ray Serve's proxy in a local Ray: ports and files of its own."""

from __future__ import annotations

from pathlib import Path

from trimtab import cluster


def test_every_local_ray_gets_ports_and_files_of_its_own() -> None:
    with cluster._private_folder() as one, cluster._private_folder() as other:
        first, second = cluster._proxy_env(one), cluster._proxy_env(other)
        ports = [name for name in first if name.endswith("_PORT")]
        assert len(ports) == 3
        assert len({first[name] for name in ports} | {second[name] for name in ports}) == 6
        places = [name for name, value in first.items() if value.startswith(one)]
        assert len(places) == 5
        assert all(second[name].startswith(other) for name in places)
        assert Path(one).stat().st_mode & 0o777 == 0o700


def test_sockets_in_the_proxys_folder_have_names_that_the_kernel_takes() -> None:
    """Ray puts a folder named after the node between, and HAProxy appends its process id while it starts."""
    with cluster._private_folder() as folder:
        socket = Path(cluster._proxy_env(folder)["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        assert len(str(socket.parent / ("n" * 56) / f"{socket.name}.4194304.tmp")) < 108
