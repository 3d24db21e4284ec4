"""The six scenarios of SLOs-Serve's evaluation (arXiv 2504.08784), with their published length statistics.

Not published, and so assumed here: deviation of the reasoning scenario's lengths (CV 0.6, the body clipped at four
times the mean), rounds of a tool session (2 to 5, uniform) and the time that a tool takes (exponential, mean 1 s).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.workloads.lengths import Lengths

TraceName = Literal["code", "conversation"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of request: its tier and lengths. Sessions have ``rounds`` (least, most)."""

    tier: str
    prompt: Lengths
    output: Lengths
    thinking: Lengths | None = None
    rounds: tuple[int, int] = (1, 1)
    tool_s: float = 0.0

    @property
    def mean_rounds(self) -> float:
        """Requests of a session."""
        return sum(self.rounds) / 2


@dataclass(frozen=True, slots=True)
class Scenario:
    """Kinds in equal shares, and the trace that its arrivals follow under ``trace``."""

    name: str
    kinds: tuple[Kind, ...]
    trace: TraceName


CHATBOT = Kind("chat", Lengths(763, 424, 1591), Lengths(266, 160, 619))
CODER = Kind("code", Lengths(847, 617, 2010), Lengths(26, 47, 232))
SUMMARIZER = Kind("summarize", Lengths(1333, 444, 1946), Lengths(202, 234, 1508))
TOOL = Kind("tool", Lengths(690, 356, 2131), Lengths(116, 66, 363), rounds=(2, 5), tool_s=1.0)
REASONING = Kind(
    "reasoning",
    Lengths(127, 83, 421),
    output=Lengths(803, 0.6 * 803, cap=4 * 803),
    thinking=Lengths(4693, 0.6 * 4693, cap=4 * 4693),
)

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("chatbot", (CHATBOT,), "conversation"),
        Scenario("coder", (CODER,), "code"),
        Scenario("summarizer", (SUMMARIZER,), "conversation"),
        Scenario("mixed", (CHATBOT, CODER, SUMMARIZER), "code"),
        Scenario("tool", (TOOL,), "code"),
        Scenario("reasoning", (REASONING,), "conversation"),
    )
}
