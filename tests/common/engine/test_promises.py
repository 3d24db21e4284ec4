import random

import pytest

from common.engine.promises import Promise, terms
from common.slo import CHECK_EVERY, Objective

PLAIN = Objective(arrival_s=100.0, ttft_s=1.0, tpot_s=0.1)
REASONING = Objective(arrival_s=100.0, ttft_s=1.0, tpot_s=0.1, thinking_tpot_s=0.03)
END = 7


def make_promise(objective: Objective | None = PLAIN, hop_s: float = 0.0, **changes: object) -> Promise:
    given: dict[str, object] = {
        "tier": "chat",
        "arrival_s": None,
        "start": 0,
        "have": 0,
        "first_token_s": None,
        "thinking_end": None,
    }
    given |= {"thought": None} | changes
    return Promise.of(terms(objective, **given), now_s=50.0, hop_s=hop_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [PLAIN, REASONING])
@pytest.mark.parametrize("first_s", [100.4, 102.0])
def test_every_token_is_due_when_the_objective_says(objective: Objective, first_s: float) -> None:
    rng = random.Random(3)
    promise = make_promise(objective, thinking_end=END)
    times: list[float] = []
    tokens: list[int] = []
    assert promise.due_s == objective.prefill_due_s
    while len(tokens) < 45:
        new = [END if len(tokens) + n == 20 else 8 for n in range(1, rng.randint(2, 4))]
        tokens += new
        times += [first_s + 0.05 * len(tokens)] * len(new)
        promise.advance(new, times[-1])
        thought = 20 if len(tokens) >= 20 else None
        number = len(tokens) + 1
        assert promise.due_s == pytest.approx(objective.token_due_s(number, times[0], thought))
        assert promise.tpot_s == objective.current_tpot_s(thought is None)
        assert (number + promise.checked_in - 1) % CHECK_EVERY == 0
        assert 1 <= promise.checked_in <= CHECK_EVERY


def test_tokens_of_another_engine_count() -> None:
    promise = make_promise(start=1, have=1, first_token_s=101.5)
    assert promise.due_s == pytest.approx(PLAIN.token_due_s(2, 101.5))
    promise.advance([8], 101.55)
    assert promise.due_s == pytest.approx(PLAIN.token_due_s(3, 101.5))


def test_without_the_time_of_the_first_token_it_counts_as_in_time() -> None:
    assert make_promise(start=5, have=5).due_s == pytest.approx(PLAIN.prefill_due_s + 0.5)


def test_replayed_tokens_are_not_due_again() -> None:
    promise = make_promise(start=0, have=5, first_token_s=100.5)
    due_s = [promise.due_s]
    for _ in range(7):
        promise.advance([8], 105.0)
        due_s.append(promise.due_s)
    expected = [PLAIN.token_due_s(max(5, count) + 1, 100.5) for count in range(8)]
    assert due_s == pytest.approx(expected)


def test_thinking_that_ended_elsewhere_has_the_answers_pace() -> None:
    promise = make_promise(REASONING, start=30, have=30, first_token_s=100.5, thinking_end=END, thought=12)
    assert promise.tpot_s == REASONING.tpot_s
    assert promise.due_s == pytest.approx(REASONING.token_due_s(31, 100.5, 12))


def test_the_way_to_the_client_is_subtracted_from_every_deadline() -> None:
    assert make_promise(hop_s=0.002).due_s == pytest.approx(PLAIN.prefill_due_s - 0.002)


def test_what_is_not_promised_is_never_due_and_aged_from_its_arrival() -> None:
    promise = make_promise(None, arrival_s=40.0)
    promise.advance([8], 60.0)
    assert (promise.due_s, promise.arrival_s) == (float("inf"), 40.0)
    assert make_promise(None).arrival_s == 50.0


def test_an_output_that_does_not_begin_to_think_has_the_answer_s_pace_from_its_second_token_on() -> None:
    promise = make_promise(REASONING, thinking_start=5, thinking_end=END)
    promise.advance([8], 100.5)
    assert promise.due_s == pytest.approx(REASONING.token_due_s(2, 100.5, 0))
    assert promise.tpot_s == REASONING.tpot_s


def test_an_output_that_begins_to_think_has_the_pace_of_thinking() -> None:
    promise = make_promise(REASONING, thinking_start=5, thinking_end=END)
    promise.advance([5], 100.5)
    promise.advance([8], 100.6)
    assert promise.due_s == pytest.approx(REASONING.token_due_s(3, 100.5, None))
    assert promise.tpot_s == REASONING.thinking_tpot_s
