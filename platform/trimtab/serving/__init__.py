"""The Ray Serve applications: a model behind an OpenAI-compatible endpoint, with the gate of ``trimtab.policy``.

By default the gate stands inside the engine's replica, and Ray's HAProxy hands requests straight to it (direct
streaming); with ``direct: false`` it stands in the ordinary OpenAI ingress of Ray Serve, in front of the engine.
"""

from trimtab.serving.apps import applications, build_app
from trimtab.serving.config import ServeConfig, ServedModel
from trimtab.serving.running import refuse_taken_port, run, running, throwaway_key

__all__ = [
    "ServeConfig",
    "ServedModel",
    "applications",
    "build_app",
    "refuse_taken_port",
    "run",
    "running",
    "throwaway_key",
]
