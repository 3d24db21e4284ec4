from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from common.telemetry import metrics

OURS = [value for value in vars(metrics).values() if isinstance(value, Counter | Gauge | Histogram)]


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_the_page_is_what_prometheus_parses() -> None:
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(page.decode())}
    assert {"slos_decisions", "slos_plan_seconds", "slos_leader", "gen_ai_server_request_duration_seconds"} <= families


def test_every_metric_is_documented_and_in_a_namespace() -> None:
    described = [family for metric in OURS for family in metric.describe()]
    assert len(described) == len(OURS) >= 30
    assert all(family.name.startswith(("slos_", "gen_ai_server_")) for family in described)
    assert all(len(family.documentation) > 10 for family in described)


def test_latency_is_kept_by_tier_and_by_prediction_or_achievement() -> None:
    before, predicted = (sample("slos_ttft_seconds_count", tier="chat", kind=k) for k in ("achieved", "predicted"))
    metrics.TTFT_S.labels("chat", "achieved").observe(0.3)
    assert sample("slos_ttft_seconds_count", tier="chat", kind="achieved") == before + 1
    assert sample("slos_ttft_seconds_count", tier="chat", kind="predicted") == predicted


def test_labels_are_what_dashboards_ask_for() -> None:
    metrics.DECISIONS.labels(tier="code", verdict="admitted").inc()
    metrics.ENDED.labels(tier="code", state="done").inc()
    metrics.ATTAINED.labels(tier="code", attained="yes").inc()
    metrics.PLAN_ERRORS.labels(policy="edf").inc()
    assert sample("slos_decisions_total", tier="code", verdict="admitted") >= 1
    assert sample("slos_attainment_total", tier="code", attained="yes") >= 1
