"""The cluster files against Ray's own validators, without a cloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLUSTERS = [ROOT / "cluster.yaml", *sorted((ROOT / "jobs" / "clusters").glob("*.yaml"))]
RESOURCES = {
    "cluster.yaml": {"head": {"CPU": 0}, "generate": {}, "train": {}},  # of AWS, Ray asks for the sizes itself
    "gcp.yaml": {"head": {"CPU": 0}, "generate": {"CPU": 16, "GPU": 1}, "train": {"CPU": 208, "GPU": 8}},
}


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_ray_up_takes_the_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(_yaml(path))
    validate_config(config)
    types = config["available_node_types"]
    for name, resources in RESOURCES.get(path.name, {}).items():
        assert resources.items() <= types[name]["resources"].items()
    if path.name == "on_premises.yaml":
        assert [node["max_workers"] for node in types.values()] == [2]


@pytest.mark.parametrize("name", ["jobs/kuberay/pipeline.yaml", "serve/rayservice.yaml"])
def test_rays_autoscaler_reads_the_groups_of_a_kuberay_file(name: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    spec = _yaml(ROOT / name)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "c", "namespace": "trimtab"}, "spec": cluster}
    )
    validate_config(config)
    types = config["available_node_types"]
    assert types.pop("headgroup")["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] == 10
    for group in cluster["workerGroupSpecs"]:
        found = types[group["groupName"]]
        gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        assert (found["max_workers"], found["resources"]["GPU"]) == (group["maxReplicas"], int(gpus))


def test_serve_takes_the_configuration_of_the_rayservice() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(_yaml(ROOT / "serve" / "rayservice.yaml")["spec"]["serveConfigV2"])
    deployed = ServeDeploySchema.model_validate(config)
    assert deployed.http_options.port == 8000
    assert [application.route_prefix for application in deployed.applications] == ["/"]


def test_variables_that_the_nodes_set_are_those_that_ray_reads() -> None:
    import ray

    texts = [(ROOT / "jobs" / "clusters" / "ray_env.sh").read_text(), (ROOT / "serve" / "rayservice.yaml").read_text()]
    names = {name for text in texts for name in re.findall(r"\bRAY_SERVE_\w+", text)}
    source = Path(ray.__file__).parent
    known = "".join(
        path.read_text() for folder in ("serve", "llm") for path in (source / folder).rglob("constants*.py")
    )
    assert not [name for name in names if f'"{name}"' not in known]
