import math
import re
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from bench.outcome import Outcome
from bench.simulator.settings import Failure
from bench.simulator.simulation import Run
from bench.simulator.systems import SYSTEMS, Tuning
from bench.workloads import Item
from common.messages import Slo, Verdict
from common.presets import PRESETS
from tests.bench.simulator.support import PLAIN, PRESET, item, run, simulation, workload

SMALL = replace(PRESET, name="small", kv_tokens=6_000, max_seqs=24)


def tokens_of(found: Run) -> list[int]:
    return [len(one.token_times_s) for one in found.outcomes]


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_every_request_gets_exactly_its_tokens_in_order_of_time(system: str) -> None:
    items = workload()
    found = run(items, system)
    served = [one for one in found.outcomes if one.verdict is not Verdict.REJECTED]
    assert [len(one.token_times_s) for one in served] == [one.item.output_tokens for one in served]
    assert found.emitted == sum(tokens_of(found))
    assert found.left == 0
    assert len(served) > 0.9 * len(items)
    for one in served:
        assert all(early <= late for early, late in zip(one.token_times_s, one.token_times_s[1:], strict=False))
        assert one.token_times_s[0] > one.arrival_s


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_the_same_seed_gives_the_same_run(system: str) -> None:
    items = workload(seconds=8.0)
    assert run(items, system) == run(items, system)
    assert run(items, system, seed=2).end_s != run(items, system).end_s


def test_slos_given_by_request_are_planned_for_in_place_of_the_tiers() -> None:
    items = [item(prompt=200, tier="chat"), item(3.0, prompt=200, tier="chat"), item(6.0, prompt=200, tier="chat")]
    promised = [Slo(5.0, None, 100.0), Slo(900.0, None, 100.0), None]  # below the prefill's time, easy, best effort
    tight, easy, loose = simulation(items, "ours", PLAIN, promised=promised).run().outcomes
    assert tight.verdict is not Verdict.ADMITTED
    assert easy.attained()
    assert [one.objective and one.objective.ttft_s for one in (tight, easy, loose)] == [0.005, 0.9, None]


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_kv_is_never_over_and_all_given_back_when_memory_is_short(system: str) -> None:
    made = simulation(workload(rate=12.0, seconds=10.0), system, preset=SMALL)
    found = made.run()
    assert found.most_blocks <= SMALL.blocks
    assert found.most_blocks > SMALL.blocks / 2
    assert [engine.used_blocks for engine in made.world.engines] == [0] * 4
    assert found.left == 0


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_the_loss_of_a_worker_loses_no_request_and_no_token(system: str) -> None:
    items = workload(rate=6.0)
    failures = (Failure(worker=1, at_s=5.0, back_s=11.0), Failure(worker=3, at_s=9.0))
    found = run(items, system, failures=failures)
    assert found.left == 0
    for one in found.outcomes:
        if one.verdict is not Verdict.REJECTED:
            assert len(one.token_times_s) == one.item.output_tokens
    assert found.end_s > 5.0


def test_what_a_lost_worker_had_computed_is_computed_again() -> None:
    items = workload(rate=6.0)
    busy_s = items[len(items) // 2].arrival_s + 0.2
    assert run(items, failures=(Failure(0, busy_s, busy_s + 4.0),)).tokens > run(items).tokens


def test_tokens_that_a_client_has_are_not_made_again_after_a_loss() -> None:
    one = item(prompt=100, output=200, arrival_s=0.0)
    found = run([one], workers=2, preset=PLAIN, noise=0.0, failures=(Failure(0, 1.0), Failure(1, 50.0)))
    times = found.outcomes[0].token_times_s
    assert found.emitted == 200
    assert max(np.diff(times)) > 3.0  # the silence until the loss was noticed
    assert times[-1] < 10.0


def test_waiting_in_a_queue_of_one_server_is_as_pollaczek_and_khinchine_say() -> None:
    alone = replace(PLAIN, max_seqs=1)
    service_s = 0.01 + 1e-4 * 100
    load = 0.7
    gaps = np.random.default_rng(11).exponential(service_s / load, 20_000)
    items = [item(float(at_s), 100, 1, session=f"s{i}") for i, at_s in enumerate(np.cumsum(gaps))]
    found = run(items, preset=alone, workers=1, noise=0.0, hop_s=0.0)
    waited = [one.ttft_s - service_s for one in found.outcomes]
    assert fmean(waited) == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.08)


def test_an_idle_engine_takes_its_zero_load_time() -> None:
    found = run([item(1.0, prompt=1000, output=3)], preset=PLAIN, noise=0.0, hop_s=0.004)
    times = np.array(found.outcomes[0].token_times_s)
    assert times - 1.0 == pytest.approx([0.004 + 0.11, 0.004 + 0.11 + 0.0101, 0.004 + 0.11 + 0.0202])


def test_a_prompt_over_the_budget_is_computed_in_chunks() -> None:
    found = run([item(0.0, prompt=1000, output=1)], preset=PLAIN, noise=0.0, hop_s=0.0, tuning=Tuning(400))
    assert found.steps == 3
    assert found.outcomes[0].ttft_s == pytest.approx(3 * 0.01 + 0.1)


def test_noise_changes_durations_and_not_their_mean() -> None:
    items = [item(0.0, 100, 2000, session=str(i)) for i in range(4)]
    quiet, noisy = (run(items, preset=PLAIN, noise=noise).busy_s for noise in (0.0, 0.1))
    assert noisy != quiet
    assert noisy == pytest.approx(quiet, rel=0.02)


def test_drafts_make_fewer_iterations_of_the_same_tokens() -> None:
    items = [item(0.0, 100, 400, session=str(i)) for i in range(4)]
    plain, drafted = (run(items, "vllm-spec", tuning=Tuning(2048, drafts)) for drafts in (0, 3))
    assert tokens_of(drafted) == tokens_of(plain)
    expected = 1 + 0.7 + 0.7**2 + 0.7**3
    assert plain.steps / drafted.steps == pytest.approx(expected, rel=0.1)


def test_a_preset_without_a_draft_model_never_drafts() -> None:
    items = [item(0.0, 100, 200, session=str(i)) for i in range(4)]
    plain = PRESETS["qwen2.5-7b-h100"]
    assert run(items, "vllm-spec", preset=plain, tuning=Tuning(2048, 3)) == run(items, preset=plain)


def test_split_serving_pulls_each_prompts_kv_once_one_after_the_other_at_the_receiver() -> None:
    slow_link = replace(PLAIN, link_bytes_per_s=1e6, transfer_setup_s=0.0)
    items = [item(0.0, 500, 5, session=str(i)) for i in range(4)]
    found = run(items, "disagg", preset=slow_link, workers=2, noise=0.0, tuning=Tuning(4096, 0, 1))
    assert found.pulls == 4
    second = sorted(one.token_times_s[1] for one in found.outcomes)
    assert np.diff(second) == pytest.approx([0.5, 0.5, 0.5], abs=0.02)


def test_kv_that_died_with_its_producer_is_computed_again() -> None:
    slow_link = replace(PLAIN, link_bytes_per_s=1e5, transfer_setup_s=0.0)
    failures = (Failure(worker=0, at_s=1.0),)
    found = run([item(0.0, 500, 5)], "disagg", preset=slow_link, workers=2, failures=failures, tuning=Tuning(4096))
    assert tokens_of(found) == [5]
    assert found.pulls == 1


def test_later_rounds_of_a_session_start_after_the_one_before() -> None:
    rounds = [item(0.5, 100, 20, "tool", session="t"), item(0.5, 100, 20, "tool", session="t", after_s=2.0)]
    first, second = run(rounds, "ours").outcomes
    assert second.arrival_s == pytest.approx(first.token_times_s[-1] + 2.0)
    assert first.objective is not None
    assert second.objective is not None
    assert (first.objective.tpot_s, second.objective.tpot_s) == (0.05, 0.1)


def test_a_round_after_a_missed_one_is_promised_nothing() -> None:
    rounds = [item(0.1, 500, 2, "tool", session="t"), item(0.1, 100, 2, "tool", session="t", after_s=0.1)]
    first, second = run(rounds, "ours", workers=1, failures=(Failure(0, 0.0, back_s=5.0),)).outcomes
    assert not first.attained()
    assert second.served
    assert second.verdict is Verdict.DEFERRED


def test_reasoning_is_held_to_its_thinking_pace_and_then_to_its_answers() -> None:
    found = run([item(0.0, 100, 200, "reasoning", thinking_tokens=150)], "ours").outcomes[0]
    assert found.objective is not None
    assert found.objective.thinking_tpot_s == 0.05
    assert found.attained()


def test_requests_without_an_slo_are_served_and_count_for_nothing() -> None:
    found = run([item(0.0, 100, 20, "batch")], "ours").outcomes[0]
    assert (found.verdict, found.objective, found.served) == (Verdict.DEFERRED, None, True)


@pytest.mark.parametrize("system", ["ours", "slos-serve", "edf"])
def test_in_a_crowd_the_planned_promise_less_than_all_and_serve_the_rest_later(system: str) -> None:
    items = [item(0.01 * i, 1500, 30, session=f"s{i}") for i in range(120)]
    outcomes = run(items, system, workers=2).outcomes
    verdicts = {one.verdict for one in outcomes}
    assert {Verdict.ADMITTED, Verdict.DEFERRED} <= verdicts
    assert all(one.served for one in outcomes if one.verdict is not Verdict.REJECTED)


def test_an_unknown_tier_is_an_error() -> None:
    with pytest.raises(KeyError, match="gold"):
        simulation([item(tier="gold")])


def attained(outcomes: tuple[Outcome, ...]) -> float:
    return fmean(one.attained() for one in outcomes)


def test_at_a_light_load_every_system_attains_nearly_all() -> None:
    items = workload("chatbot", rate=1.5)
    for system in SYSTEMS:
        tuning = Tuning(2048, 0, 2)
        assert attained(run(items, system, tuning=tuning).outcomes) >= 0.9, system


def test_names_of_requests_follow_their_arrival() -> None:
    book = simulation(workload(seconds=2.0)).world.book
    assert book.names == sorted(book.names)
    assert all(re.fullmatch(r"\d{7}", name) for name in book.names)
    assert math.isnan(book.times_s[0])


def test_an_empty_session_needs_no_time() -> None:
    assert run([Item(0.0, "a", "chat", 1, 1)]).outcomes[0].served
