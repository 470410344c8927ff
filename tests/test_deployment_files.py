"""What jobs/ and serve/ ship for clusters: the right keys, nothing open, and names that fit one another."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import kuberay_schema as schema
from trimtab import pipeline
from trimtab.config import load
from trimtab.engine import telemetry
from trimtab.operations import submission
from trimtab.serving import ServeConfig

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"
CLUSTERS = [ROOT / "cluster.yaml", *sorted((JOBS / "clusters").glob("*.yaml"))]
KINDS = {
    "jobs/kuberay/pipeline.yaml": schema.RayJob,
    "serve/rayservice.yaml": schema.RayService,
    "jobs/kuberay/network_policy.yaml": schema.NetworkPolicy,
    "jobs/kuberay/volume_claim.yaml": schema.PersistentVolumeClaim,
    "jobs/kuberay/operator_values.yaml": schema.OperatorValues,
    "jobs/kuberay/cluster_values.yaml": schema.ClusterValues,
}
IMAGE_ROOT = "/home/ray/trimtab/"


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _cluster_specs() -> list[schema.RayClusterSpec]:
    job = schema.RayJob.model_validate(_yaml(JOBS / "kuberay" / "pipeline.yaml"))
    service = schema.RayService.model_validate(_yaml(ROOT / "serve" / "rayservice.yaml"))
    return [job.spec.rayClusterSpec, service.spec.rayClusterConfig]


def _templates(spec: schema.RayClusterSpec) -> list[schema.PodTemplate]:
    return [spec.headGroupSpec.template, *(group.template for group in spec.workerGroupSpecs)]


@pytest.mark.parametrize("name", KINDS)
def test_kubernetes_file_has_the_fields_of_its_kind(name: str) -> None:
    KINDS[name].model_validate(_yaml(ROOT / name))


def test_every_kubernetes_file_is_checked() -> None:
    found = [*(JOBS / "kuberay").glob("*.yaml"), ROOT / "serve" / "rayservice.yaml"]
    assert {path.relative_to(ROOT).as_posix() for path in found} == set(KINDS)


def test_groups_of_a_cluster_fit_one_another() -> None:
    for spec in _cluster_specs():
        assert spec.rayVersion == "2.60.0"
        assert spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
        images = {container.image for template in _templates(spec) for container in template.spec.containers}
        assert images == {"trimtab:0.1.0"}
        for template in _templates(spec):
            spec_of_pod = template.spec
            volumes = {volume.name for volume in spec_of_pod.volumes}
            secrets = {volume.name for volume in spec_of_pod.volumes if volume.secret}
            for container in spec_of_pod.containers:
                assert {mount.name for mount in container.volumeMounts} == volumes - secrets
            for container in spec_of_pod.initContainers:
                assert secrets < {mount.name for mount in container.volumeMounts} <= volumes
            for container in [*spec_of_pod.initContainers, *spec_of_pod.containers]:
                assert container.resources.limits == container.resources.requests
        for group in spec.workerGroupSpecs:
            assert group.minReplicas <= group.replicas <= group.maxReplicas
            assert group.template.spec.automountServiceAccountToken is False


def test_secrets_are_named_and_never_there() -> None:
    job, service = _cluster_specs()
    values = schema.ClusterValues.model_validate(_yaml(JOBS / "kuberay" / "cluster_values.yaml"))
    assert job.authOptions.secretName == service.authOptions.secretName
    (token,) = [variable for variable in values.common.containerEnv if variable.name == "RAY_AUTH_TOKEN"]
    assert token.value is None
    assert token.valueFrom
    assert token.valueFrom.secretKeyRef.name == job.authOptions.secretName
    plain = {variable.name for spec in (job, service) for template in _templates(spec)
             for container in template.spec.containers for variable in container.env}  # fmt: skip
    assert not [name for name in plain if submission.SECRET_NAMES.search(name)]
    for path in [*CLUSTERS, *(ROOT / name for name in KINDS), *(JOBS / "clusters").glob("*.sh"), JOBS / "Dockerfile"]:
        assert not submission.SECRET_TEXT.search(path.read_text(encoding="utf-8")), path.name


def test_network_policy_holds_for_all_pods_and_opens_few_ports() -> None:
    policy = schema.NetworkPolicy.model_validate(_yaml(JOBS / "kuberay" / "network_policy.yaml")).spec
    chart = schema.ClusterValues.model_validate(_yaml(JOBS / "kuberay" / "cluster_values.yaml"))
    labels = [template.metadata.labels for spec in _cluster_specs() for template in _templates(spec)]
    for label in [*labels, chart.head.labels, chart.worker.labels]:
        assert policy.podSelector.matchLabels.items() <= label.items()
    for rule in policy.ingress:
        own = [peer.podSelector for peer in rule.from_] == [policy.podSelector]
        assert own or {port.port for port in rule.ports} <= {8000, 8080, 8265}
        assert all(peer.podSelector or peer.namespaceSelector for peer in rule.from_)


def test_rayjob_runs_a_script_and_a_configuration_that_are_in_the_image() -> None:
    job = schema.RayJob.model_validate(_yaml(JOBS / "kuberay" / "pipeline.yaml")).spec
    python, script, option, config = shlex.split(job.entrypoint)
    assert (python, option) == ("python", "--config")
    resolved = load(pipeline.PipelineConfig, ROOT / config.removeprefix(IMAGE_ROOT), [])
    assert (ROOT / script.removeprefix(IMAGE_ROOT)).is_file()
    assert resolved.promote
    assert not resolved.endpoint
    assert resolved.output.is_relative_to("/shared")
    assert yaml.safe_load(job.runtimeEnvYAML) == {"env_vars": submission.ENV_VARS}
    submission.refuse_places_of_this_machine(resolved)
    groups = {group.groupName: group for group in job.rayClusterSpec.workerGroupSpecs}
    assert resolved.engine.most_actors == groups["generate"].maxReplicas
    gpus = groups["train"].template.spec.containers[0].resources.limits["nvidia.com/gpu"]
    assert resolved.training.num_workers == int(gpus)


def test_rayservice_serves_our_application_with_arguments_that_it_takes() -> None:
    service = schema.RayService.model_validate(_yaml(ROOT / "serve" / "rayservice.yaml")).spec
    (application,) = yaml.safe_load(service.serveConfigV2)["applications"]
    assert application["import_path"] == "serve.app:build"
    config = ServeConfig.model_validate(application["args"])
    assert config.model == "tuned@production"
    assert config.host == application_host(service)
    for template in _templates(service.rayClusterConfig):
        (init,), (container,) = template.spec.initContainers, template.spec.containers
        command, mode_flag, mode, source, target = init.command
        assert (command, mode_flag, mode) == ("install", "-m", "600")
        assert str(config.keys) == target
        (secret,) = [volume for volume in template.spec.volumes if volume.secret]
        places = {mount.name: mount.mountPath for mount in init.volumeMounts}
        assert source == f"{places[secret.name]}/keys.json"
        kept = {mount.mountPath for mount in container.volumeMounts}
        assert {str(config.keys.parent), str(config.audit.parent)} <= kept


def application_host(service: schema.RayServiceSpec) -> str:
    """Where the proxies of the service listen."""
    return str(yaml.safe_load(service.serveConfigV2)["http_options"]["host"])


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_cluster_is_closed_from_outside(path: Path) -> None:
    config = _yaml(path)
    for side in ("head", "worker"):
        for command in config[f"{side}_start_ray_commands"]:
            assert command.startswith(". ~/trimtab/jobs/clusters/ray_env.sh && ray ")
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert config["file_mounts"].pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    for remote, local in config["file_mounts"].items():
        assert (ROOT / local).exists()
        assert remote == f"/home/ubuntu/trimtab/{local}"
    assert config["provider"]["type"] == "local" or config["provider"]["use_internal_ips"]
    assert "jobs/clusters/setup_node.sh" in config["setup_commands"][0]
    assert all(command.startswith("umask 077; ") for command in config["setup_commands"] if "secrets.env" in command)


def test_aws_nodes_have_our_security_group_and_imdsv2() -> None:
    types = _yaml(ROOT / "cluster.yaml")["available_node_types"]
    for node in types.values():
        config = node["node_config"]
        assert config["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert config["SecurityGroupIds"], "without one Ray makes a group that lets in ssh from everywhere"
        assert all(device["Ebs"]["Encrypted"] for device in config["BlockDeviceMappings"])
    assert types["head"]["resources"]["CPU"] == 0
    assert types["generate"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["train"]["node_config"]
    assert types["generate"]["priority"] > types["train"]["priority"]
    assert types["generate"]["min_workers"] == types["train"]["min_workers"] == 0


def test_scripts_of_the_nodes_are_shell_and_switch_the_token_on(tmp_path: Path) -> None:
    for path in (JOBS / "clusters").glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
    (tmp_path / "secrets.env").write_text("JUDGE_API_KEY=abc\n")
    command = f". {JOBS / 'clusters' / 'ray_env.sh'} && env"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_SERVE_HAPROXY_SOCKET_PATH"].startswith(str(tmp_path))
    assert found["JUDGE_API_KEY"] == "abc"


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (JOBS / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_dockerfile_is_pinned_unprivileged_and_copies_what_is_there() -> None:
    steps = _instructions()
    assert {name for name, _ in steps} <= {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}, "no ADD"
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+", dict(steps)["FROM"])
    users = [value for name, value in steps if name == "USER"]
    assert users
    assert users[-1] == "1000:1000"
    allowed = (JOBS / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for name, value in steps:
        if name == "COPY":
            *sources, _ = [part for part in value.split() if not part.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in allowed, source
        assert name != "RUN" or not re.search(r"curl|wget http|sudo", value)
    assert not [value for name, value in steps if name == "ENV" and submission.SECRET_NAMES.search(value)]


def test_monitoring_files_ask_for_gauges_that_are_there() -> None:
    config = _yaml(JOBS / "monitoring" / "prometheus.yml")
    assert {scrape["job_name"] for scrape in config["scrape_configs"]} == {"ray"}
    dashboard = json.loads((JOBS / "monitoring" / "pipeline.json").read_text(encoding="utf-8"))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"]
             for name in re.findall(r"ray_trimtab_(\w+)", target["expr"])}  # fmt: skip
    assert asked == set(telemetry.GAUGES)
