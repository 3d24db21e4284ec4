"""How a job becomes a vLLM request: which prompt, how many tokens, what to skip, which KV to pull."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.codec import Tokens
from common.engine.interface import Job
from common.engine.promises import terms_of
from common.errors import EngineDead, EngineRefused
from common.messages import HandOff


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to vLLM for a job.

    The first tokens that it yields must equal ``replayed`` and are dropped. ``held`` is whether its KV waits for
    a consumer when it ends.
    """

    prompt: Tokens
    max_tokens: int
    min_tokens: int
    replayed: Tokens
    held: bool
    transfer: Mapping[str, Any] | None


def attempt_for(job: Job, block_size: int, pull: bool, replay: bool = True) -> Attempt:
    """The request for a job.

    Where tokens depend on more than the text so far (seeded sampling, penalties), output tokens that exist
    already may not become part of the prompt: they are sampled again from the original prompt, which gives
    exactly what one engine would have given, and dropped. ``replay=False`` gives that up.
    """
    replayed = job.generated if replay and job.sampling.depends_on_history else ()
    skipped = len(job.generated) - len(replayed)
    prompt = job.prompt if replayed else job.prompt + job.generated
    left = job.sampling.max_tokens - skipped
    max_tokens = min(left, len(replayed) + 1) if job.keep_kv else left
    held = job.keep_kv and max_tokens < left
    transfer = None
    if held:
        transfer = {"do_remote_decode": True, "do_remote_prefill": False}
    elif pull and job.hand_off is not None:
        transfer = _pulled(job.hand_off, len(prompt), block_size)
    min_tokens = min(max(0, job.sampling.min_tokens - skipped), max_tokens)
    return Attempt(prompt, max_tokens, min_tokens, replayed, held, transfer)


def _pulled(hand_off: HandOff, prompt_tokens: int, block_size: int) -> dict[str, Any]:
    """Parameters for a pull of just the blocks that the prompt needs: vLLM aligns both lists at their ends."""
    blocks = -(-min(hand_off.tokens, prompt_tokens) // block_size)
    groups = [list(group)[:blocks] for group in hand_off.kv["remote_block_ids"]]
    return {**hand_off.kv, "remote_block_ids": groups, "remote_num_tokens": min(hand_off.tokens, prompt_tokens)}


def sampling_params(job: Job, attempt: Attempt, eos: frozenset[int], key: int) -> Any:
    """vLLM's ``SamplingParams``; raises ValueError for values that it does not take."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    wanted = job.sampling
    stops = set(wanted.stop_token_ids) | (set() if wanted.ignore_eos else eos)
    extra: dict[str, Any] = {"slos": {"key": key, **terms_of(job, len(job.generated) - len(attempt.replayed))}}
    if attempt.transfer is not None:
        extra["kv_transfer_params"] = dict(attempt.transfer)
    return SamplingParams(
        max_tokens=attempt.max_tokens,
        min_tokens=attempt.min_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        seed=wanted.seed,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        repetition_penalty=wanted.repetition_penalty,
        stop_token_ids=sorted(stops),
        ignore_eos=wanted.ignore_eos,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra,
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """vLLM's errors as ours."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDead("the vLLM engine has died") from error
    except ValueError as error:
        raise EngineRefused(str(error)) from error
