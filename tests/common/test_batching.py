import random
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.batching import Batch, BatchState, Candidate, Columns, Former, Pull, form_batch, with_pulls
from common.batching_reference import form_batch_reference
from common.batching_table import FAR, HURRY, WHOLE
from common.latency_model import LatencyModel, Piece
from tests.common.batching import NOW_S, Loop, blocks, decoder, make_state, prompt, spare, work_of

MODELS = (
    LatencyModel((Piece(1e-4, 0.0, 0.005),), k_seq=1e-4),
    LatencyModel((Piece(6.9e-5, 0.0, 0.025), Piece(7.5e-5, 3.5e-3, 0.003))),
    LatencyModel((Piece(4e-4, 0.0, 0.004),), k_seq=2e-4, k_kv=1e-6, k_attn=1e-7),
    LatencyModel((Piece(0.02, 0.1, 0.4),)),
)


@st.composite
def candidates(draw: st.DrawFn, number: int) -> Candidate:
    running = draw(st.booleans())
    remote = not running and draw(st.booleans())
    promised = draw(st.booleans())
    todo = draw(st.one_of(st.just(1), st.integers(1, 3000))) if running else draw(st.integers(1, 3000))
    return Candidate(
        id=f"r{number}",
        todo_tokens=todo,
        context_tokens=draw(st.integers(0, 3000)) if running else 0,
        arrival_s=NOW_S - draw(st.floats(0, 20)),
        due_s=NOW_S + draw(st.one_of(st.floats(-1, 2), st.floats(2, 60))) if promised else inf,
        tpot_s=draw(st.sampled_from([0.02, 0.05, 0.1])) if promised else inf,
        checked_in=draw(st.integers(1, 10)),
        drafts=draw(st.integers(0, 8)) if running and todo == 1 else 0,
        promised=promised,
        running=running,
        remote=remote,
    )


@st.composite
def states(draw: st.DrawFn) -> BatchState:
    rows = [draw(candidates(number)) for number in range(draw(st.integers(0, 12)))]
    return BatchState(
        columns=Columns.of(rows),
        latency=draw(st.sampled_from(MODELS)),
        free_blocks=draw(st.one_of(st.integers(0, 20), st.integers(0, 2000))),
        block_size=draw(st.sampled_from([16, 32])),
        max_tokens=draw(st.sampled_from([4, 64, 2048])),
        max_seqs=max(draw(st.integers(1, 12)), sum(row.running for row in rows)),
        lookahead_tokens=draw(st.sampled_from([0, 4])),
        credit_tokens=draw(st.floats(0, 256)),
        former=Former(margin=draw(st.sampled_from([0.0, 0.1])), share=draw(st.sampled_from([0.0, 0.05]))),
    )


def test_batches_are_short_enough_for_what_is_pulled() -> None:
    """At the end of this batch the pull is noticed, and those after it make the tokens up to the next one checked."""
    former = Former(margin=0.1, longest_s=0.15)
    pull = Pull(due_s=NOW_S + 0.08, tpot_s=0.04)
    short = with_pulls(former, [Pull(inf, inf), pull], NOW_S, step_s=0.01)
    assert short.longest_s == pytest.approx(0.9 * 0.08 - 0.01 / HURRY, abs=1e-6)
    third = with_pulls(former, [replace(pull, checked_in=3)], NOW_S, step_s=0.01)
    assert third.longest_s == pytest.approx(0.9 * 0.16 - 0.03 / HURRY, abs=1e-6)
    slow = LatencyModel((Piece(1e-4, 0.0, 0.015),))
    waiting = make_state([prompt(todo_tokens=2000)], latency=slow, max_tokens=4096)
    long, cut = (form_batch(replace(waiting, former=one), NOW_S).seconds for one in (former, short))
    assert cut <= short.longest_s < long


@pytest.mark.parametrize("base_s", [0.004, 0.04])
def test_a_batch_lasts_some_steps_of_the_engine_and_only_a_first_prompt_makes_it_longer(base_s: float) -> None:
    """So its fixed cost is a small part of it on any engine, and a lone prompt is not cut for nobody's sake."""
    model, former = LatencyModel((Piece(1e-4, 0.0, base_s),)), Former(margin=0.0)
    longest_s = former.longest_steps * (base_s + 1e-4)
    tokens = round(longest_s / 1e-4)  # of a prompt that lasts one step longer

    def seconds(*rows: Candidate, former: Former = former) -> float:
        state = make_state(rows, latency=model, max_tokens=1 << 20, former=former, free_blocks=1 << 20)
        return form_batch(state, NOW_S).seconds

    due_s = NOW_S + 4 * longest_s
    whole = prompt(todo_tokens=tokens, due_s=due_s)
    assert seconds(prompt(todo_tokens=10 * tokens, due_s=due_s)) == pytest.approx(longest_s, rel=0.01)
    assert seconds(whole) == pytest.approx(longest_s + base_s, rel=0.01)
    assert seconds(prompt(todo_tokens=16, due_s=due_s), whole) == pytest.approx(longest_s, rel=0.01)
    assert seconds(whole, former=replace(former, longest_s=longest_s)) == pytest.approx(longest_s, rel=0.01)
    assert seconds(whole, decoder(due_s=NOW_S + longest_s / 2)) <= longest_s / 2


def test_a_pull_that_is_late_asks_for_batches_of_its_tpot_and_one_with_time_for_nothing() -> None:
    former = Former(margin=0.1, longest_s=0.15)
    assert with_pulls(former, [Pull(NOW_S - 1, 0.04)], NOW_S, 0.01).longest_s == pytest.approx(0.036)
    assert with_pulls(former, [Pull(NOW_S - 1, 0.04)], NOW_S, 0.03).longest_s == pytest.approx(0.09)
    assert with_pulls(former, [Pull(NOW_S + 1, 0.04)], NOW_S, 0.01) is former
    assert with_pulls(former, [], NOW_S, 0.01) is former


@given(states())
@settings(max_examples=500)
def test_the_compiled_policy_and_the_readable_one_agree(state: BatchState) -> None:
    assert form_batch(state, NOW_S) == form_batch_reference(state, NOW_S)


@given(states())
@settings(max_examples=300)
def test_limits_hold_and_work_is_conserved(state: BatchState) -> None:
    batch = form_batch(state, NOW_S)
    rows = {row.id: row for row in state.columns.rows()}
    assert set(batch.preempt).isdisjoint(batch.tokens)
    assert sum(batch.tokens.values()) <= state.max_tokens
    assert all(tokens <= rows[id_].todo_tokens + rows[id_].drafts for id_, tokens in batch.tokens.items())
    assert all((tokens == 0) == rows[id_].remote for id_, tokens in batch.tokens.items())
    freed = sum(blocks(state, rows[id_].context_tokens) for id_ in batch.preempt)
    taken = sum(need(state, rows[id_], tokens) for id_, tokens in batch.tokens.items())
    assert taken <= state.free_blocks + freed
    left = sum(row.running for row in rows.values()) - len(batch.preempt)
    assert left + sum(not rows[id_].running for id_ in batch.tokens) <= state.max_seqs
    assert batch.seconds == pytest.approx(state.latency.seconds(work_of(batch, rows)))
    if not batch.tokens:
        assert not any(row.running and need(state, row, 1) <= state.free_blocks for row in rows.values())
        if not any(row.running for row in rows.values()):
            assert not any(need(state, row, row.todo_tokens) <= state.free_blocks for row in rows.values())


def need(state: BatchState, row: Candidate, tokens: int) -> int:
    tokens = row.todo_tokens if row.remote else tokens
    return blocks(state, row.context_tokens + tokens + state.lookahead_tokens) - blocks(state, row.context_tokens)


@given(states(), st.integers(0, 2**32))
@settings(max_examples=200)
def test_only_best_effort_and_later_arrivals_are_preempted(state: BatchState, seed: int) -> None:
    batch = form_batch(state, NOW_S)
    rows = {row.id: row for row in state.columns.rows()}
    for id_ in batch.preempt:
        victim = rows[id_]
        gainers = [rows[name] for name in batch.tokens]
        before = [row for row in gainers if row.running and row.arrival_s <= victim.arrival_s]
        assert victim.running
        if victim.promised:
            assert any(row.promised for row in before)
        else:
            assert before or any(row.promised for row in gainers)


@pytest.mark.parametrize("promised", [True, False])
def test_decodes_that_all_need_a_block_when_none_is_free_do_not_wait_for_each_other(promised: bool) -> None:
    rows = [Candidate(f"r{i}", 1, 112, arrival_s=float(i), promised=promised) for i in range(3)]
    batch = form_batch(BatchState(Columns.of(rows), MODELS[0], 0, 16, 2048, 64), NOW_S)
    assert set(batch.tokens) == {"r0", "r1"}
    assert batch.preempt == ("r2",)


@given(states())
@settings(max_examples=200)
def test_a_promised_decode_that_could_not_wait_takes_part(state: BatchState) -> None:
    state = replace(state, free_blocks=10_000, max_tokens=2048)
    batch = form_batch(state, NOW_S)
    for row in state.columns.rows():
        if row.promised and row.running and row.todo_tokens == 1 and row.id not in batch.tokens:
            assert row.due_s - NOW_S > batch.seconds + state.latency.decode_seconds(1, row.context_tokens)


@given(states(), st.booleans())
@settings(max_examples=200)
def test_where_all_decode_and_there_is_room_all_take_part(state: BatchState, promised: bool) -> None:
    """What the engine relies on where it leaves the batch former out."""
    rows = [
        replace(row, todo_tokens=1, drafts=0, promised=promised, due_s=row.due_s if promised else inf, remote=False)
        for row in state.columns.rows()
        if row.running
    ]
    state = replace(state, columns=Columns.of(rows), free_blocks=len(rows), max_tokens=2048, lookahead_tokens=0)
    batch = form_batch(state, NOW_S)
    assert batch.tokens == {row.id: 1 for row in rows}
    assert batch.preempt == ()


def test_without_waiting_prompts_every_decode_takes_part() -> None:
    rows = [decoder(due_s=NOW_S + 5, tpot_s=0.5) for _ in range(40)]
    assert set(form_batch(make_state(rows), NOW_S).tokens) == {row.id for row in rows}


def test_loose_decodes_skip_where_that_makes_room_for_a_prompt() -> None:
    tight, loose = decoder(due_s=NOW_S + 0.02), [decoder(due_s=NOW_S + 1) for _ in range(60)]
    batch = form_batch(make_state([tight, *loose, prompt()]), NOW_S)
    assert tight.id in batch.tokens
    assert not any(row.id in batch.tokens for row in loose)


def test_where_no_deadline_is_near_batches_are_long_and_nobody_skips() -> None:
    """Fixed cost is then all that batches can save: 60 decodes at 5 ms a batch and 0.1 ms a token and sequence."""
    state = make_state([])
    far_s = NOW_S + (FAR + 0.1) * state.former.within(state.latency, WHOLE)
    loose, waiting = [decoder(due_s=far_s) for _ in range(60)], [prompt(todo_tokens=200, due_s=far_s)] * 2
    rows = [*loose, *(replace(one, id=f"p{n}") for n, one in enumerate(waiting))]
    assert form_batch(make_state(rows), NOW_S).tokens == {row.id: row.todo_tokens for row in rows}
    short = form_batch(make_state([*rows, decoder(due_s=NOW_S + 0.05)]), NOW_S)
    assert not any(row.id in short.tokens for row in loose)
    assert short.seconds < 0.04  # twice what its decodes alone take


def test_a_chunk_is_what_the_tightest_decode_leaves() -> None:
    waiting = prompt(todo_tokens=2000)
    batch = form_batch(make_state([decoder(due_s=NOW_S + 0.03), waiting]), NOW_S)
    assert batch.seconds <= 0.03
    assert batch.seconds == pytest.approx(0.03, abs=2e-4)


def test_the_margin_is_given_up_before_a_decode_is_late_and_prompts_before_the_margin() -> None:
    tight = decoder(due_s=NOW_S + 0.0055, tpot_s=0.05)  # a batch of it alone takes 5.2 ms
    state = make_state([tight, prompt()], former=Former(margin=0.3))
    assert set(form_batch(state, NOW_S).tokens) == {tight.id}


def test_best_effort_drafts_only_where_nothing_is_promised() -> None:
    rows = [spare(running=True, todo_tokens=1, context_tokens=32, drafts=3) for _ in range(2)]
    assert form_batch(make_state(rows), NOW_S).drafts == {row.id: 3 for row in rows}
    assert form_batch(make_state([*rows, decoder()]), NOW_S).drafts == {}


def test_attention_shortens_the_chunks_of_a_long_context() -> None:
    model = LatencyModel((Piece(1e-4, 0.0, 0.005),), k_attn=1e-7)
    short, long = [
        form_batch(
            make_state([decoder(due_s=NOW_S + 0.05), prompt(context_tokens=context, running=True)], latency=model),
            NOW_S,
        )
        for context in (0, 3000)
    ]
    assert sum(long.tokens.values()) < sum(short.tokens.values()) / 2
    assert max(short.seconds, long.seconds) <= 0.05


def test_a_chunk_that_completes_a_prompt_keeps_the_batch_within_its_deadline() -> None:
    first, second = prompt(todo_tokens=100, due_s=NOW_S + 0.03), prompt(todo_tokens=2000, due_s=NOW_S + 9)
    batch = form_batch(make_state([first, second]), NOW_S)
    assert batch.tokens[first.id] == 100
    assert 0.02 < batch.seconds <= 0.03


@pytest.mark.parametrize("late_s", [0.01, 0.5, 50.0])
def test_late_decodes_keep_pace_and_prompts_still_get_chunks(late_s: float) -> None:
    rows = [decoder(due_s=NOW_S - late_s, tpot_s=0.05, checked_in=10) for _ in range(8)]
    batch = form_batch(make_state([*rows, prompt()]), NOW_S)
    assert {row.id for row in rows} <= set(batch.tokens)
    assert 0.02 < batch.seconds <= 0.05


def test_a_missed_prompt_goes_behind_one_that_can_be_met_but_does_not_starve() -> None:
    missed = prompt(arrival_s=NOW_S - 1.1, due_s=NOW_S - 0.1, todo_tokens=3000)
    fresh = prompt(arrival_s=NOW_S - 0.1, due_s=NOW_S + 0.9, todo_tokens=3000)
    assert next(iter(form_batch(make_state([missed, fresh]), NOW_S).tokens)) == fresh.id
    later_s = NOW_S + 3
    newer = replace(fresh, arrival_s=later_s - 0.1, due_s=later_s + 0.9)
    assert next(iter(form_batch(make_state([missed, newer]), later_s).tokens)) == missed.id


def test_best_effort_gets_what_is_left_oldest_first() -> None:
    old, new = spare(arrival_s=NOW_S - 9, todo_tokens=200), spare(arrival_s=NOW_S - 1, todo_tokens=9000)
    urgent = prompt(todo_tokens=100)
    rows = [new, old, urgent, decoder(due_s=NOW_S + 0.06)]
    batch = form_batch(make_state(rows, former=Former(margin=0.0, longest_steps=20)), NOW_S)
    assert list(batch.tokens)[1:] == [urgent.id, old.id, new.id]
    assert batch.tokens[old.id] == 200
    assert batch.seconds <= 0.06


def test_best_effort_has_its_share_though_promised_prompts_take_all() -> None:
    rows = [prompt(todo_tokens=10**6) for _ in range(4)] + [spare(todo_tokens=10**6)]
    state = make_state(rows, former=Former(share=0.05), free_blocks=10**6)
    total = got = 0
    for _ in range(200):
        batch = form_batch(state, NOW_S)
        total += sum(batch.tokens.values())
        got += batch.tokens.get(rows[-1].id, 0)
        state = replace(state, credit_tokens=batch.credit_tokens)
    assert got / total == pytest.approx(0.05, abs=0.005)


def test_best_effort_is_preempted_for_a_promise_youngest_first() -> None:
    running = [spare(running=True, todo_tokens=1, context_tokens=320, arrival_s=NOW_S - age) for age in (9, 1, 5)]
    waiting = prompt(todo_tokens=400)
    batch = form_batch(make_state([*running, waiting], free_blocks=6), NOW_S)
    assert batch.preempt == (running[1].id,)
    assert waiting.id in batch.tokens


def test_best_effort_makes_place_for_a_promise_when_all_sequences_are_taken() -> None:
    running = [spare(running=True, todo_tokens=1, context_tokens=32, arrival_s=NOW_S - age) for age in (2, 1)]
    batch = form_batch(make_state([*running, prompt()], max_seqs=2), NOW_S)
    assert batch.preempt == (running[1].id,)


def test_a_promise_is_not_started_where_its_prompt_can_not_end() -> None:
    half_done = prompt(running=True, context_tokens=160, todo_tokens=320)
    waiting = prompt(todo_tokens=320)
    batch = form_batch(make_state([half_done, waiting], free_blocks=11), NOW_S)
    assert list(batch.tokens) == [half_done.id]
    assert batch.preempt == ()


def test_a_pull_is_let_in_though_the_batch_is_full() -> None:
    pulled = prompt(remote=True, todo_tokens=1000, due_s=NOW_S + 8)
    batch = form_batch(make_state([prompt(todo_tokens=10**5, due_s=NOW_S + 1), pulled]), NOW_S)
    assert batch.tokens[pulled.id] == 0


def test_drafts_are_dropped_where_verifying_them_would_make_a_token_late() -> None:
    rows = [decoder(due_s=NOW_S + 0.012, drafts=8) for _ in range(10)]
    assert form_batch(make_state(rows), NOW_S).drafts == {}
    roomy = [replace(row, due_s=NOW_S + 0.1) for row in rows]
    assert form_batch(make_state(roomy), NOW_S).drafts == {row.id: 8 for row in rows}


@pytest.mark.parametrize("seed", range(12))
def test_promised_tokens_are_in_time_when_the_load_is_feasible_and_the_model_right(seed: int) -> None:
    rng = random.Random(seed)
    loop = Loop(make_state([], latency=MODELS[0], free_blocks=4000, former=Former(margin=0.0)), rng)
    loop.run(seconds=30.0, tight=rng.randint(1, 8), loose=rng.randint(0, 12), prompts_per_s=rng.uniform(0.5, 2.0))
    assert loop.late_tokens == 0
    assert loop.tokens > 1000
    assert loop.best_effort_tokens > 0
    assert loop.prompts_done > 10
    assert loop.free_blocks_at_end == 4000


def test_an_empty_engine_has_an_empty_batch() -> None:
    assert form_batch(make_state([]), NOW_S) == Batch({}, {}, (), 0.005, 0.0)
