from dataclasses import replace

import pytest

from common.engine.vllm_jobs import attempt_for
from common.messages import HandOff, Sampling
from tests.common.engine.support import GREEDY, make_job, make_prompt

SEEDED = Sampling(max_tokens=10, seed=3)
HAND_OFF = HandOff("p", {"remote_block_ids": [[5, 6, 7, 8]], "remote_num_tokens": 103}, 103, 0.0, 30.0)


def test_tokens_that_exist_become_part_of_the_prompt() -> None:
    job = make_job((1, 2, 3), generated=(4, 5))
    attempt = attempt_for(job, 32, pull=False)
    assert attempt.prompt == (1, 2, 3, 4, 5)
    assert attempt.max_tokens == GREEDY.max_tokens - 2
    assert attempt.replayed == ()


def test_with_a_history_they_are_sampled_again_and_dropped() -> None:
    job = make_job((1, 2, 3), SEEDED, generated=(4, 5))
    attempt = attempt_for(job, 32, pull=False)
    assert (attempt.prompt, attempt.max_tokens, attempt.replayed) == ((1, 2, 3), 10, (4, 5))


def test_a_replay_that_is_given_up_goes_on_after_them() -> None:
    job = make_job((1, 2, 3), SEEDED, generated=(4, 5))
    attempt = attempt_for(job, 32, pull=False, replay=False)
    assert (attempt.prompt, attempt.max_tokens, attempt.replayed) == ((1, 2, 3, 4, 5), 8, ())


@pytest.mark.parametrize(("sampling", "expected"), [(GREEDY, 1), (SEEDED, 3)])
def test_prefill_only_ends_after_the_next_token_and_holds_its_kv(sampling: Sampling, expected: int) -> None:
    attempt = attempt_for(make_job((1, 2, 3), sampling, generated=(4, 5), keep_kv=True), 32, pull=False)
    assert attempt.max_tokens == expected
    assert attempt.transfer == {"do_remote_decode": True, "do_remote_prefill": False}


def test_prefill_only_of_the_last_token_holds_nothing() -> None:
    attempt = attempt_for(make_job((1, 2, 3), replace(GREEDY, max_tokens=1), keep_kv=True), 32, pull=False)
    assert not attempt.held
    assert attempt.transfer is None


def test_least_tokens_never_exceed_what_an_attempt_may_give() -> None:
    sampling = replace(GREEDY, min_tokens=5)
    assert attempt_for(make_job((1, 2), sampling, keep_kv=True), 32, pull=False).min_tokens == 1
    assert attempt_for(make_job((1, 2), sampling, generated=(3,)), 32, pull=False).min_tokens == 5
    assert attempt_for(make_job((1, 2), sampling, generated=(3,)), 32, pull=False, replay=False).min_tokens == 4


@pytest.mark.parametrize(("length", "blocks"), [(96, 3), (97, 4), (103, 4), (300, 4)])
def test_a_pull_asks_for_the_blocks_that_both_sides_share(length: int, blocks: int) -> None:
    job = make_job(make_prompt(length), SEEDED, generated=(4,), hand_off=HAND_OFF)
    transfer = attempt_for(job, 32, pull=True).transfer
    assert transfer is not None
    assert transfer["remote_block_ids"] == [[5, 6, 7, 8][:blocks]]
    assert transfer["remote_num_tokens"] == min(length, 103)
