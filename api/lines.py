"""One body of an OpenAI route outside of HTTP, such as a line of an offline batch: to a request, and to its answer."""

from dataclasses import dataclass
from typing import Any

from api.body import parse
from api.context import Context
from api.delivery import Delivery
from api.intake import Prepared, Sender
from api.openai import chat, completions
from api.outcome import problem_of
from api.problems import for_openai
from api.schemas import ChatBody, CompletionBody
from common.messages import Record

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class PreparedLine:
    """A body that was accepted. ``prepared.request`` is what goes into the queue."""

    path: str
    prepared: Prepared
    context: Context

    def delivery(self, record: Record) -> Delivery:
        """The answer as far as the record has it; its ``stopped`` tells whether a stop string was met."""
        delivery = Delivery(self.prepared, self.context)
        times = record.notes.get("ended_s", self.prepared.request.arrival_s)
        delivery.catch_up(record, times)
        return delivery

    def response(self, record: Record) -> tuple[int, dict[str, Any]]:
        """HTTP status and body for a record that has ended."""
        delivery = self.delivery(record)
        problem = problem_of(delivery)
        if problem is not None:
            problem = for_openai(problem, self.path)
            return problem.status, problem.body(openai=True)
        render = chat.render if self.path == CHAT else completions.render
        return 200, render(delivery)


async def prepare_line(path: str, request_id: str, raw: bytes, sender: Sender, context: Context) -> PreparedLine:
    """Raises ProblemError as the route would; ValueError for a path that is none of the two."""
    if path == CHAT:
        prepared = await chat.intake(request_id, parse(raw, ChatBody), sender, context)
    elif path == COMPLETIONS:
        prepared = await completions.intake(request_id, parse(raw, CompletionBody), sender, context)
    else:
        raise ValueError(f"{path} has no lines")
    return PreparedLine(path, prepared, context)
