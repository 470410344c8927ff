"""What ``serve deploy`` and ``serve run`` take: the shipped file by Serve's own schema, and the builder's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_shipped_file_fits_serves_schema_and_holds_no_secret() -> None:
    from ray.serve.schema import ServeDeploySchema

    text = (ROOT / "serve" / "config.yaml").read_text(encoding="utf-8")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert [app.import_path for app in schema.applications] == ["serve.app:build"]
    assert "tt-" not in text


@pytest.mark.parametrize("direct", [True, False])
def test_builder_makes_an_application_whose_deployment_the_file_names(tiny_model: Path, direct: bool) -> None:
    from serve.app import build

    app = build({"model": str(tiny_model), "min_replicas": "0", "direct": direct})
    deployment = app._bound_deployment
    shipped = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    if direct:
        assert deployment.name == shipped["applications"][0]["deployments"][0]["name"]
    assert deployment.user_config == {"presets": {}}
