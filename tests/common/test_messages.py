import math

import pytest

from common.messages import Sampling, Slo, State


@pytest.mark.parametrize("state", State)
def test_only_queued_and_running_go_on(state: State) -> None:
    assert state.ended == (state.value not in ("queued", "running"))


def test_an_slo_has_one_kind_of_ttft() -> None:
    assert Slo(1.0, None, 1.0).ttft_ms == 1.0
    assert Slo(None, 3.0, 1.0).ttft_slowdown == 3.0
    for ttft_ms, ttft_slowdown in ((1.0, 3.0), (None, None)):
        with pytest.raises(ValueError, match="exactly one"):
            Slo(ttft_ms, ttft_slowdown, tpot_ms=1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e9])
@pytest.mark.parametrize("field", ["ttft_ms", "ttft_slowdown", "tpot_ms", "thinking_tpot_ms"])
def test_an_slo_is_positive_and_finite(field: str, value: float) -> None:
    fields: dict[str, float | None] = {"ttft_ms": 1.0, "ttft_slowdown": None, "tpot_ms": 1.0}
    if field == "ttft_slowdown":
        fields["ttft_ms"] = None
    fields[field] = value
    with pytest.raises(ValueError, match="positive and finite"):
        Slo(**fields)  # type: ignore[arg-type] # the fields are those of an Slo


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(8),
        Sampling(8, temperature=0.0, seed=3),
        Sampling(8, top_p=0.5, top_k=3, min_p=0.1, stop_token_ids=(1,), ignore_eos=True),
    ],
)
def test_these_samplings_depend_on_the_text_only(sampling: Sampling) -> None:
    assert not sampling.depends_on_history


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(8, seed=3),
        Sampling(8, presence_penalty=0.1),
        Sampling(8, frequency_penalty=-0.1),
        Sampling(8, repetition_penalty=1.1),
        Sampling(8, min_tokens=2),
    ],
)
def test_these_samplings_depend_on_more_than_the_text(sampling: Sampling) -> None:
    assert sampling.depends_on_history
