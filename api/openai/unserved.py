"""Refusing what OpenAI's API offers and this server does not, so that nobody mistakes silence for support."""

from collections.abc import Iterator

from api.problems import FieldError, Problem, ProblemError
from api.schemas import ChatBody, CommonOpenAI, CompletionBody


def refuse_unserved(body: CommonOpenAI) -> None:
    """Raises ProblemError 400 naming each field that asks for something that is not served."""
    errors = [*_common(body)]
    if isinstance(body, CompletionBody):
        errors += _completion(body)
    if isinstance(body, ChatBody):
        errors += _chat(body)
    if errors:
        raise ProblemError(Problem(400, "unsupported", "This server does not offer that.", tuple(errors)))


def _common(body: CommonOpenAI) -> Iterator[FieldError]:
    if body.n not in (None, 1):
        yield FieldError("n", "only one answer a request is served", 1)
    if body.logit_bias:
        yield FieldError("logit_bias", "is not served")
    if body.stream_options is not None and not body.stream:
        yield FieldError("stream_options", "needs stream to be true")


def _completion(body: CompletionBody) -> Iterator[FieldError]:
    if body.best_of not in (None, 1):
        yield FieldError("best_of", "only 1 is served", 1)
    if body.logprobs is not None:
        yield FieldError("logprobs", "log probabilities are not served")
    if body.echo:
        yield FieldError("echo", "is not served")
    if body.suffix:
        yield FieldError("suffix", "is not served")


def _chat(body: ChatBody) -> Iterator[FieldError]:
    if body.logprobs:
        yield FieldError("logprobs", "log probabilities are not served")
    if body.top_logprobs:
        yield FieldError("top_logprobs", "log probabilities are not served")
    for name in ("tools", "functions"):
        if getattr(body, name):
            yield FieldError(name, "tool calls are not served")
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none", "auto"):
            yield FieldError(name, "tool calls are not served")
    if body.response_format is not None and body.response_format.type != "text":
        yield FieldError("response_format", "only type text is served", "text")
    if body.modalities not in (None, ["text"]):
        yield FieldError("modalities", "only text is served", "text")
