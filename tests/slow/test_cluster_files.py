"""cluster.yaml against Ray's own validator, without a cloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow


def test_cluster_yaml_is_valid_and_closed() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    assert all("RAY_AUTH_MODE=token" in config[f"{side}_start_ray_commands"][-1] for side in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["provider"]["use_internal_ips"]
    for node in config["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
