"""Prometheus metrics: what was answered, refused and counted, under labels of few values."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from trimtab.policy.metrics import HELP, LABELS, PrometheusMetrics
from trimtab.policy.ports import Event

ANSWERED = Event(
    request_id="r", key_id="ci", decision="allowed", status=200, preset="harmless", prompt_tokens=3,
    completion_tokens=4, seconds=0.5, first_token_s=0.1,
)  # fmt: skip


def _samples(metrics: PrometheusMetrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def test_an_answered_request() -> None:
    metrics = PrometheusMetrics()
    metrics.started("ci", "harmless")
    assert _samples(metrics)[("trimtab_in_flight",)] == 1
    metrics.ended(ANSWERED)
    assert _samples(metrics) == {
        ("trimtab_requests_total", "ci", "harmless", "200"): 1,
        ("trimtab_tokens_total", "ci", "prompt", "harmless"): 3,
        ("trimtab_tokens_total", "ci", "completion", "harmless"): 4,
        ("trimtab_request_seconds_count",): 1, ("trimtab_request_seconds_sum",): 0.5,
        ("trimtab_first_token_seconds_count",): 1, ("trimtab_first_token_seconds_sum",): 0.1,
        ("trimtab_in_flight",): 0,
    }  # fmt: skip


def test_a_refused_request() -> None:
    metrics = PrometheusMetrics()
    metrics.ended(Event("r", "-", "invalid_key", 401))
    samples = _samples(metrics)
    assert samples[("trimtab_requests_total", "-", "", "401")] == 1
    assert samples[("trimtab_denials_total", "invalid_key")] == 1
    assert samples[("trimtab_in_flight",)] == samples[("trimtab_request_seconds_count",)] == 0


def test_a_list_of_models_is_not_in_flight() -> None:
    metrics = PrometheusMetrics()
    metrics.ended(Event("r", "ci", "allowed", 200))
    samples = _samples(metrics)
    assert samples[("trimtab_requests_total", "ci", "", "200")] == 1
    assert samples[("trimtab_in_flight",)] == samples[("trimtab_request_seconds_count",)] == 0


def test_a_request_that_the_engine_failed_is_in_flight_no_more() -> None:
    metrics = PrometheusMetrics()
    metrics.started("ci", "harmless")
    metrics.ended(Event("r", "ci", "allowed", 500, "harmless", prompt_tokens=3))
    samples = _samples(metrics)
    assert samples[("trimtab_in_flight",)] == 0
    assert samples[("trimtab_requests_total", "ci", "harmless", "500")] == 1
    assert not [name for name, *_ in samples if name == "trimtab_denials_total"]
    assert samples[("trimtab_tokens_total", "ci", "prompt", "harmless")] == 3
    assert samples[("trimtab_first_token_seconds_count",)] == 0


def test_names_labels_and_descriptions_belong_together() -> None:
    assert set(LABELS) == set(HELP)
    assert all(name.startswith("trimtab_") for name in LABELS)
