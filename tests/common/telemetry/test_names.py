from dataclasses import replace

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, messaging_attributes

from common.messages import End, HandOff, State, Work
from common.telemetry import names
from tests.common.telemetry.scenario import START_S, make_decision, make_request


def test_deprecated_names_are_not_used() -> None:
    strings = [value for value in vars(names).values() if isinstance(value, str)]
    assert not {"gen_ai.system", "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"} & set(strings)


def test_the_conventions_names_are_those_of_the_published_list() -> None:
    values = [*vars(gen_ai_attributes).values(), *vars(messaging_attributes).values()]
    published = {value for value in values if isinstance(value, str)}
    ours = {value for value in vars(names).values() if isinstance(value, str)}
    claimed = {value for value in ours if value.startswith(("gen_ai.", "messaging."))}
    assert len(claimed) >= 10
    assert claimed <= published


def test_a_request_without_an_slo_has_no_promise() -> None:
    best_effort = replace(make_request(), slo=None)
    attributes = names.request_attributes(best_effort, "tiny")
    assert attributes[names.TPOT_MS] is None
    assert attributes[names.INPUT_TOKENS] == 3


def test_a_failed_end_has_an_error_type_and_no_finish_reason() -> None:
    attributes = names.end_attributes(End(State.FAILED, "engine_dead", "text of a user"), 4)
    assert attributes[names.ERROR_TYPE] == "engine_dead"
    assert attributes[names.FINISH_REASONS] is None
    assert "text of a user" not in attributes.values()


def test_work_is_described_with_its_worker_and_attempt() -> None:
    attributes = names.work_attributes(Work(make_request(), make_decision(), attempt=2), "p1")
    assert (attributes[names.WORKER], attributes[names.ATTEMPT], attributes[names.TIER]) == ("p1", 2, "chat")


def test_a_transfer_without_measurements_claims_none() -> None:
    hand_off = HandOff("p1", {}, 48, START_S, START_S + 30)
    attributes = names.transfer_attributes(hand_off, START_S + 0.25, {})
    assert (attributes[names.KV_BYTES], attributes[names.RECOMPUTED]) == (None, None)
    assert attributes[names.KV_AGE_MS] == 250.0


def test_a_late_token_has_negative_slack() -> None:
    assert names.slack_event(20, START_S + 1, START_S)[2][names.SLACK_MS] == -1000.0


def test_an_outcome_says_what_was_achieved() -> None:
    assert names.outcome_attributes(250.0, None, 12.0, True) == {
        "slo.achieved_ttft_ms": 250.0,
        "slo.achieved_tpot_ms": None,
        "slo.achieved_thinking_tpot_ms": 12.0,
        "slo.attained": True,
    }


def test_a_decision_s_span_says_what_it_was_made_from() -> None:
    attributes = names.decision_attributes(replace(make_decision(), inputs={"held": 3, "hop_ms": 2.5}))
    assert (attributes["slo.input.held"], attributes["slo.input.hop_ms"]) == (3, 2.5)
