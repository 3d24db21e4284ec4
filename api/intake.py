"""From a validated body to a request for the pipeline. Pure: the online routes and offline batches share it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from api.context import Context
from api.facts import Facts
from api.problems import FieldError, Problem, ProblemError, invalid, invalid_field
from api.schemas import MAX_SLO_MS, SamplingFields, SloFields
from api.thinking import NO_THINKING, Thinking
from api.tokenizer import TextTooLong
from common.codec import Tokens
from common.messages import Overload, Request, Sampling, Slo
from common.tiers import Tier, Tiers

GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends a request, and what its HTTP headers add. ``reply_to`` is the api replica that relays its tokens."""

    tenant: str
    arrival_s: float
    reply_to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case names."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request and what only the api needs to deliver its answer.

    ``chat`` parts reasoning from answer by the ``thinking`` tokens.
    """

    request: Request
    max_queued: int
    stops: tuple[str, ...] = ()
    chat: bool = False
    thinking: Thinking = NO_THINKING


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, the field that they came from, and how many output tokens are wanted (None: all that fit)."""

    tokens: Tokens
    field: str
    max_tokens: int | None
    max_tokens_field: str = "max_tokens"
    may_think: bool = True
    chat: bool = False


def prepare(
    request_id: str, prompt: Prompt, sampling: SamplingFields, slo: SloFields, sender: Sender, context: Context
) -> Prepared:
    """The request that the body asks for; raises ProblemError naming each field that is out of bounds."""
    facts = context.facts
    tier, objective = _promise(slo, sender, context.tiers)
    errors = [*_prompt_errors(prompt, facts), *_sampling_errors(prompt, sampling, facts), *_thinking_errors(slo, facts)]
    if errors:
        raise invalid(*errors)
    room = facts.max_model_len - len(prompt.tokens)
    max_tokens = prompt.max_tokens if prompt.max_tokens is not None else room
    thinking = (
        facts.thinking if slo.thinking is None else Thinking(slo.thinking.start_token_id, slo.thinking.end_token_id)
    )
    thinks = prompt.may_think and objective is not None and objective.thinking_tpot_ms is not None
    request = Request(
        id=request_id,
        tier=tier.name,
        tenant=sender.tenant,
        arrival_s=sender.arrival_s,
        prompt=prompt.tokens,
        sampling=_sampling(sampling, max_tokens),
        slo=objective,
        overload=slo.on_overload or (tier.on_overload if objective else Overload.DEFER),
        value=tier.value,
        patience_ms=tier.patience_s * 1000,
        priority=slo.priority or 0,
        session_id=slo.session_id,
        last_round=bool(slo.last_round),
        thinking_start=thinking.awaited_start(prompt.tokens) if thinks else None,
        thinking_end=thinking.end if thinks else None,
        reply_to=sender.reply_to,
    )
    return Prepared(request, tier.max_queued, sampling.stops, prompt.chat, thinking)


def with_trace(prepared: Prepared, carrier: Mapping[str, str]) -> Prepared:
    """The same, its spans under ``carrier``."""
    return replace(prepared, request=replace(prepared.request, trace=carrier))


async def tokens_of_text(text: str, name: str, context: Context, add_special_tokens: bool = True) -> Tokens:
    """Token ids of the text in field ``name``; raises ProblemError if it can't fit."""
    bound = max_prompt_tokens(context.facts)
    if not text:
        return ()
    try:
        return await context.tokenizer.encode(text, bound, add_special_tokens)
    except TextTooLong:
        raise invalid_field(name, f"is longer than {bound} tokens", bound) from None


def max_prompt_tokens(facts: Facts) -> int:
    """Longest prompt that leaves room for one token."""
    return facts.max_model_len - 1


def check_model(name: str | None, facts: Facts) -> None:
    """Raises ProblemError 404 unless the model is served here; None is whatever is."""
    if name is not None and name not in facts.names:
        error = FieldError("model", f"only {facts.served_name!r} is served here")
        raise ProblemError(Problem(404, "model_not_found", "The model does not exist here.", (error,)))


def _promise(body: SloFields, sender: Sender, tiers: Tiers) -> tuple[Tier, Slo | None]:
    from_headers = _slo_of_headers(sender.headers)
    named = sender.headers.get("x-slo-tier")
    if sum(item is not None for item in (body.tier, body.slo, named, from_headers)) > 1:
        name = "slo" if body.tier is None and body.slo else "tier" if body.tier else "x-slo-tier"
        raise invalid_field(name, "one of tier, slo and the X-SLO headers, not several")
    last_round = bool(body.last_round)
    if body.slo is not None:
        given = body.slo
        explicit = Slo(given.ttft_ms, given.ttft_slowdown, given.tpot_ms, given.thinking_tpot_ms)
        return tiers.by_name[tiers.default], explicit
    if from_headers is not None:
        return tiers.by_name[tiers.default], from_headers
    name = body.tier or named or tiers.default
    tier = tiers.by_name.get(name)
    if tier is None:
        field_name = "tier" if body.tier else "x-slo-tier"
        raise invalid_field(field_name, f"unknown; must be one of {', '.join(tiers.names)}", ", ".join(tiers.names))
    return tier, tier.slo(last_round)


def _slo_of_headers(headers: Mapping[str, str]) -> Slo | None:
    names = ("x-slo-ttft-ms", "x-slo-tpot-ms")
    if not any(name in headers for name in names):
        return None
    values = []
    for name in names:
        try:
            value = float(headers.get(name, ""))
        except ValueError:
            value = 0.0
        if not 0 < value <= MAX_SLO_MS:
            raise invalid_field(name, f"must be a number over 0 and up to {MAX_SLO_MS:g}, in milliseconds", MAX_SLO_MS)
        values.append(value)
    return Slo(ttft_ms=values[0], ttft_slowdown=None, tpot_ms=values[1])


def _prompt_errors(prompt: Prompt, facts: Facts) -> Iterator[FieldError]:
    longest = max_prompt_tokens(facts)
    if not prompt.tokens:
        yield FieldError(prompt.field, "must have at least one token", 1)
    elif len(prompt.tokens) > longest:
        yield FieldError(prompt.field, f"has {len(prompt.tokens)} tokens, at most {longest} fit", longest)
    elif max(prompt.tokens) >= facts.vocab_size:
        bound = facts.vocab_size - 1
        yield FieldError(prompt.field, f"token ids must be at most {bound}, the vocabulary's last", bound)
    elif prompt.max_tokens is not None and prompt.max_tokens > facts.max_model_len - len(prompt.tokens):
        room = facts.max_model_len - len(prompt.tokens)
        message = f"prompt ({len(prompt.tokens)} tokens) and output are over the model's {facts.max_model_len} tokens"
        yield FieldError(prompt.max_tokens_field, f"{message}: at most {room}", room)


def _sampling_errors(prompt: Prompt, body: SamplingFields, facts: Facts) -> Iterator[FieldError]:
    if body.stop_token_ids and max(body.stop_token_ids) >= facts.vocab_size:
        bound = facts.vocab_size - 1
        yield FieldError("stop_token_ids", f"must be at most {bound}, the vocabulary's last", bound)
    wanted = prompt.max_tokens if prompt.max_tokens is not None else facts.max_model_len - len(prompt.tokens)
    if body.min_tokens is not None and body.min_tokens > wanted:
        yield FieldError("min_tokens", "must not be over max_tokens", wanted)


def _thinking_errors(body: SloFields, facts: Facts) -> Iterator[FieldError]:
    ids = {} if body.thinking is None else body.thinking.model_dump(exclude_none=True)
    bound = facts.vocab_size - 1
    for name, token in ids.items():
        if token > bound:
            yield FieldError(f"thinking.{name}", f"must be at most {bound}, the vocabulary's last", bound)


def _sampling(body: SamplingFields, max_tokens: int) -> Sampling:
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
    )
