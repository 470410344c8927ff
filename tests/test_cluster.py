"""What is asked of a cluster, compared with what its autoscaler says it can't give."""

from __future__ import annotations

from trimtab.cluster import _sizes


def test_bundles_are_the_same_in_any_order_and_number_type() -> None:
    asked: list[dict[str, float]] = [{"CPU": 4, "GPU": 1.0}, {"CPU": 1}]
    assert _sizes(asked) == _sizes([{"CPU": 1.0, "GPU": 0.0}, {"GPU": 1.0, "CPU": 4.0}])
    assert _sizes(asked) != _sizes([{"CPU": 4, "GPU": 1.0}])
    assert _sizes(asked) != _sizes([{"CPU": 4, "GPU": 2.0}, {"CPU": 1}])
