"""``trimtab plan``: what a run will take, by arithmetic on measured and assumed numbers, each of them printed."""

from trimtab.operations.sizing.config import PlanConfig
from trimtab.operations.sizing.run import Plan, plan

__all__ = ["Plan", "PlanConfig", "plan"]
