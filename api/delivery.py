"""What one client has received so far, whatever replies come, come twice or come too late."""

from dataclasses import dataclass, field

from api.context import Context
from api.facts import Facts
from api.intake import Prepared
from api.text import Text, TextStream
from common.codec import Tokens
from common.messages import Decided, Decision, End, Frame, Record, Reply, State, Verdict


class Gap(Exception):
    """Tokens between what was received and what came are missing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens from ``position`` on, and the text that they completed.

    ``time_s`` is when the engine's worker had them, or now where that is not known.
    """

    position: int
    tokens: Tokens
    answer: str
    reasoning: str
    time_s: float


@dataclass
class Delivery:
    """State of one answer. ``times_s`` is when each token came; ``end`` is set once and ends it."""

    prepared: Prepared
    context: Context
    decision: Decision | None = None
    end: End | None = None
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    answer: str = ""
    reasoning: str = ""
    ended_s: float | None = None
    notes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._text = TextStream(self.context, self.prepared)
        self._attempt = 0

    @property
    def facts(self) -> Facts:
        """The model's."""
        return self.context.facts

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it here, which the workers can't know."""
        return self._text.stopped

    def take(self, reply: Reply, now_s: float) -> Piece | None:
        """Account for a reply; raises Gap if tokens before it are missing."""
        if self.end is not None or reply.attempt < self._attempt:
            return None
        if isinstance(reply, Decided):
            self._attempt = reply.attempt
            self._decide(reply.decision, now_s)
            return None
        return self._take_frame(reply, now_s)

    def catch_up(self, record: Record, now_s: float) -> Piece | None:
        """Account for what the durable record says, which is never behind the replies."""
        if self.end is not None:
            return None
        if record.decision is not None:
            self.decision = record.decision
        self._attempt = max(self._attempt, record.attempt)
        return self._append(record.generated[len(self.tokens) :], record.end, now_s, now_s)

    def behind(self, reply: Reply) -> bool:
        """Whether tokens before this reply are missing."""
        return self.end is None and isinstance(reply, Frame) and reply.position > len(self.tokens)

    def fail(self, end: End, now_s: float) -> None:
        """End it from here."""
        if self.end is None:
            self.end, self.ended_s = end, now_s

    def _decide(self, decision: Decision, now_s: float) -> None:
        self.decision = decision
        if decision.verdict is Verdict.REJECTED:
            end = End(State.REJECTED, "slo_not_possible", decision.reason, decision.retry_after_s)
            self.fail(end, now_s)

    def _take_frame(self, frame: Frame, now_s: float) -> Piece | None:
        if self.behind(frame):
            raise Gap
        self._attempt = frame.attempt
        self.notes.update(frame.notes)
        return self._append(frame.tokens[len(self.tokens) - frame.position :], frame.end, now_s, frame.time_s)

    def _append(self, tokens: Tokens, end: End | None, now_s: float, made_s: float) -> Piece | None:
        position = len(self.tokens)
        texts: list[Text] = []
        silent = len(tokens) - 1 if end is not None and (end.state, end.reason) == (State.DONE, "stop") else None
        for index, token in enumerate(tokens):
            self.tokens.append(token)
            self.times_s.append(now_s)
            if index != silent:  # the token that made the engine stop is no text
                texts.append(self._text.feed(token))
            if self._text.stopped:
                end = End(State.DONE, "stop")
                break
        if end is not None:
            texts.append(self._text.flush())
            self.fail(end, now_s)
        if len(self.tokens) == position and not any(text.answer or text.reasoning for text in texts):
            return None
        answer = "".join(text.answer for text in texts)
        reasoning = "".join(text.reasoning for text in texts)
        self.answer += answer
        self.reasoning += reasoning
        return Piece(position, tuple(self.tokens[position:]), answer, reasoning, made_s)
