"""What every engine demands of a job before it takes it, so that all refuse the same."""

from common.engine.interface import Facts, Job
from common.errors import EngineRefused


def check_job(job: Job, facts: Facts) -> None:
    """Raise EngineRefused naming the field and its bound; token ids are never part of the text."""
    length = len(job.prompt) + len(job.generated)
    sampling = job.sampling
    _demand(len(job.prompt) > 0, "prompt must not be empty")
    known = (*job.prompt, *job.generated)
    _demand(min(known) >= 0 and max(known) < facts.vocab_size, f"token ids must be in [0, {facts.vocab_size})")
    _demand(length < facts.max_model_len, f"prompt must be shorter than {facts.max_model_len} tokens")
    _demand(sampling.max_tokens >= 1, "max_tokens must be at least 1")
    _demand(
        len(job.prompt) + sampling.max_tokens <= facts.max_model_len,
        f"prompt and max_tokens must not exceed {facts.max_model_len} tokens",
    )
    _demand(sampling.temperature >= 0, "temperature must not be negative")
    _demand(0 < sampling.top_p <= 1, "top_p must be in (0, 1]")
    _demand(sampling.top_k >= 0, "top_k must not be negative")
    _demand(0 <= sampling.min_p <= 1, "min_p must be in [0, 1]")
    _demand(0 <= sampling.min_tokens <= sampling.max_tokens, "min_tokens must be in [0, max_tokens]")
    _demand(not (job.keep_kv and job.hand_off), "a job can't both pull KV and keep it")
    blocks = -(-(len(job.prompt) + sampling.max_tokens) // facts.block_size)
    _demand(blocks <= facts.total_blocks, f"prompt and max_tokens need more than {facts.total_blocks} KV blocks")


def finish_of(job: Job, tokens: list[int], eos: frozenset[int]) -> str | None:
    """Finish reason of a job whose output so far is ``tokens``, None if it goes on."""
    sampling = job.sampling
    if tokens and len(tokens) >= sampling.min_tokens:
        stops = tokens[-1] in sampling.stop_token_ids or (tokens[-1] in eos and not sampling.ignore_eos)
        if stops:
            return "stop"
    return "length" if len(tokens) >= sampling.max_tokens else None


def _demand(holds: bool, text: str) -> None:
    if not holds:
        raise EngineRefused(text)
