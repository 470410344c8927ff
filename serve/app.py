"""``serve run serve.app:build model=FOLDER`` and ``serve deploy serve/config.yaml``: the gated endpoint."""

from typing import Any

from trimtab.serving import ServeConfig, build_app


def build(arguments: dict[str, Any]) -> Any:
    """The application from Serve's arguments, which are the fields of ServeConfig."""
    return build_app(ServeConfig.model_validate(arguments))
