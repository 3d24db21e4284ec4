"""What the planner's types say of a request."""

import math

import pytest

from admission.policies.edf import EarliestDeadlineFirst
from admission.policies.ours import Ours
from common.messages import Verdict
from common.slo import Objective
from tests.factories import make_held, make_state

SLO = Objective(90.0, 1.0, 0.2)


def test_the_first_token_is_due_by_the_ttft() -> None:
    assert make_held(objective=SLO).due_s == 91.0
    assert make_held(objective=None).due_s == math.inf


def test_after_a_re_dispatch_the_next_token_is_due() -> None:
    assert make_held(objective=SLO, generated_tokens=20, first_token_s=90.5).due_s == pytest.approx(95.0)
    assert make_held(objective=SLO, generated_tokens=20, first_token_s=92.0).due_s == pytest.approx(96.0)
    assert make_held(objective=SLO, generated_tokens=20).due_s == pytest.approx(95.0)


def test_in_doubt_the_tighter_stage_counts() -> None:
    thinker = Objective(90.0, 1.0, 0.2, 0.05)
    assert make_held(objective=thinker, generated_tokens=20, first_token_s=90.5).due_s == pytest.approx(92.0)


@pytest.mark.parametrize("policy", [Ours(), EarliestDeadlineFirst()])
@pytest.mark.parametrize(("generated", "expected"), [(60, Verdict.ADMITTED), (30, Verdict.DEFERRED)])
def test_a_request_whose_worker_died_keeps_its_promise_as_long_as_that_can_be_kept(
    policy: Ours | EarliestDeadlineFirst, generated: int, expected: Verdict
) -> None:
    """At 100 s the TTFT is long over; 60 tokens are ahead of a token each 0.2 s, 30 are not."""
    held = make_held(objective=SLO, generated_tokens=generated, need_tokens=100 + generated, first_token_s=90.5)
    plan = policy.plan(make_state([held]), 100.0)
    assert plan.dispatch[held.id].verdict is expected
