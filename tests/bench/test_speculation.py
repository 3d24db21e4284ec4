"""What ``bench.speculation`` works out, without an engine."""

import pytest

from bench.speculation import rate_of


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("drafts", [1, 4, 8])
def test_the_acceptance_rate_is_found_from_the_tokens_of_a_decode(rate: float, drafts: int) -> None:
    tokens = sum(rate**position for position in range(drafts + 1))
    assert rate_of(tokens, drafts) == pytest.approx(rate, abs=1e-6)
