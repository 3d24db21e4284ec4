from typing import Any

import numpy as np
import pytest

from bench.simulator.book import Book, look_ahead
from bench.simulator.formers import Former, PaperFormer, PrefillFirstFormer, SlackFormer, StockFormer, View
from bench.simulator.formers.interface import NONE
from bench.workloads import Item
from common.batching import Former as Options
from tests.bench.simulator.support import PLAIN


def view(*states: dict[str, Any], free_blocks: int = 1000) -> View:
    """One request for each state: ``prompt``, ``count`` and ``computed`` tokens, and any other column."""
    book = Book([Item(0.0, str(i), "chat", state.get("prompt", 100), 1000) for i, state in enumerate(states)])
    for i, state in enumerate(states):
        values = {"ttft": 1.0, "tpot": 0.1, "promised": True, "rank": i, "first": 1.0} | state
        values["running"] = values.get("computed", 0) > 0
        values.setdefault("blocks", -(-values.get("computed", 0) // PLAIN.block_size))
        for name, value in (values | state).items():
            book.rows[name][i] = value
        look_ahead(book.rows, i)
    return View(book, np.arange(len(states)), free_blocks, PLAIN, PLAIN.max_batch_tokens)


def formed(former: Former, seen: View, now_s: float = 0.5) -> dict[int, int]:
    batch = former.form(seen, now_s)
    return dict(zip(batch.rows.tolist(), batch.tokens.tolist(), strict=True))


DECODE = {"prompt": 100, "count": 5, "computed": 104}
PROMPT = {"prompt": 100, "count": 0, "computed": 0}

FORMERS = [
    StockFormer(2048),
    StockFormer(2048, decodes_first=True),
    PrefillFirstFormer(2048),
    PaperFormer(0.0, 0.7),
    SlackFormer(Options(), 0.0),
]


@pytest.mark.parametrize("former", FORMERS)
def test_a_decode_alone_makes_one_token(former: Former) -> None:
    assert formed(former, view(DECODE)) == {0: 1}


@pytest.mark.parametrize("former", FORMERS)
def test_a_prompt_alone_is_computed_whole(former: Former) -> None:
    assert formed(former, view(PROMPT)) == {0: 100}


@pytest.mark.parametrize("former", FORMERS)
def test_nothing_is_formed_of_nothing(former: Former) -> None:
    assert formed(former, view()) == {}


def test_stock_batches_decode_first_come_first_served_up_to_the_budget() -> None:
    states = [DECODE, PROMPT, {**PROMPT, "prompt": 500}, PROMPT]
    assert formed(StockFormer(300), view(*states)) == {0: 1, 1: 100, 2: 199}


def test_a_running_chunk_comes_before_a_later_decode_in_v1_and_after_it_in_sarathi() -> None:
    states = [{"prompt": 500, "count": 0, "computed": 100}, DECODE]
    assert formed(StockFormer(300), view(*states)) == {0: 300}
    assert formed(StockFormer(300, decodes_first=True), view(*states)) == {1: 1, 0: 299}


def test_stock_preempts_the_last_when_no_block_is_free() -> None:
    full = {"prompt": 100, "count": 13, "computed": 112}
    batch = StockFormer(2048).form(view(full, full, full, free_blocks=0), 0.5)
    assert batch.preempt.tolist() == [2]
    assert batch.rows.tolist() == [0, 1]


def test_prefill_first_leaves_decodes_out_while_a_prompt_fits() -> None:
    assert formed(PrefillFirstFormer(2048), view(DECODE, PROMPT, PROMPT)) == {1: 100, 2: 100}
    assert formed(PrefillFirstFormer(2048), view(DECODE, PROMPT, free_blocks=3)) == {0: 1}


def test_prefill_first_computes_a_prompt_over_its_budget_alone() -> None:
    assert formed(PrefillFirstFormer(64), view(PROMPT, PROMPT)) == {0: 100}


def test_the_papers_batches_end_by_the_tightest_tpot_and_loose_decodes_skip() -> None:
    tight = {**DECODE, "tpot": 0.05}
    loose = {**DECODE, "count": 1, "computed": 100, "tpot": 0.5, "first": 5.0}
    found = formed(PaperFormer(0.0, 0.7), view(tight, loose, {**PROMPT, "prompt": 3000}), now_s=1.19)
    assert found[0] == 1
    assert 1 not in found
    assert found[2] == pytest.approx((0.05 - 0.01) / 1e-4, abs=3)


def test_the_papers_prompts_go_by_deadline_and_best_effort_last() -> None:
    late, soon = {**PROMPT, "ttft": 9.0}, {**PROMPT, "ttft": 2.0}
    loose = {**PROMPT, "promised": False}
    assert list(formed(PaperFormer(0.0, 0.7), view(loose, late, soon))) == [2, 1, 0]


@pytest.mark.parametrize("former", FORMERS)
def test_what_waits_for_remote_kv_is_let_in_without_tokens_if_its_blocks_fit(former: Former) -> None:
    remote = {"prompt": 100, "count": 1, "computed": 0, "remote": True}
    assert formed(former, view(remote)) == {0: 0}
    assert formed(former, view(remote, free_blocks=2)) == {}


def test_the_product_skips_no_deadline_for_a_long_prompt() -> None:
    due_soon = {**DECODE, "tpot": 0.05, "ttft": 0.2, "first": 0.2}
    seen = view(due_soon, {**PROMPT, "prompt": 4000})
    batch = SlackFormer(Options(), 0.0).form(seen, 0.4)
    assert batch.tokens[batch.rows.tolist().index(0)] == 1
    assert 0.4 + batch.seconds <= float(seen.book.rows["due"][0])


@pytest.mark.parametrize("let_in", [False, True])
def test_the_products_prompts_leave_time_for_what_is_pulled(let_in: bool) -> None:
    pulled = {"prompt": 100, "count": 9, "computed": 0, "remote": True, "first": 0.5, "ttft": 0.5, "tpot": 0.06}
    now_s = 0.98  # its tenth token, which is checked, is due a TPOT later
    seen = view({**PROMPT, "prompt": 4000, "ttft": 9.0}, pulled)
    if let_in:
        seen = seen._replace(members=seen.members[:1], pulling=seen.members[1:])
    patient = Options(longest_steps=20)
    batch = SlackFormer(patient, 0.0).form(seen, now_s)
    assert 0.5 * 0.06 < batch.seconds <= 0.06
    alone = seen._replace(members=seen.members[:1], pulling=NONE)
    assert SlackFormer(patient, 0.0).form(alone, now_s).seconds > 0.1
