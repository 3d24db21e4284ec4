"""What operators are told of the planner."""

from admission.report import Report
from common.bus.interface import DeadLetter
from common.telemetry import metrics


def test_requests_that_were_given_up_are_counted_by_reason() -> None:
    report = Report("ours")
    report.dead_letters([DeadLetter(f"r{i}", "poison" if i else "worker_died", 1.0) for i in range(3)])
    page = metrics.render()[0].decode()
    assert 'slos_dead_letters{reason="poison"} 2.0' in page
    assert 'slos_dead_letters{reason="worker_died"} 1.0' in page
    report.dead_letters([])
    assert "slos_dead_letters{" not in metrics.render()[0].decode()
