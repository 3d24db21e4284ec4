"""How good the models are on held-out text, and how well the draft guesses the target."""

import math
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bench.tiny_model.batches import Streams, draw_windows
from bench.tiny_model.tokenizer import MAXIMUM_POSITIONS

PROMPT_TOKENS = 64
CONTINUATION_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often the target takes a token that the draft proposes."""

    greedy: float  # both take their likeliest token, along the target's greedy text
    sampled: float  # sum over tokens of min(p, q), along text sampled from the target


@torch.no_grad()
def nats_by_position(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of each next position over `rows` x `window` tokens; `window` - 1 values."""
    totals = torch.zeros(tokens.shape[1] - 1)
    for row in tokens:
        log_probabilities = model(input_ids=row[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
        totals -= log_probabilities.gather(-1, row[1:, None])[:, 0]
    return totals / len(tokens)


def perplexity(model: LlamaForCausalLM, stream: torch.Tensor, window: int = 512, rows: int = 48) -> float:
    """Perplexity per token over windows laid evenly over the stream."""
    rows = min(rows, len(stream) // window)
    starts = torch.linspace(0, len(stream) - window, rows).long()[:, None]
    return math.exp(float(nats_by_position(model, stream[starts + torch.arange(window)]).mean()))


def perplexity_by_position(model: LlamaForCausalLM, stream: torch.Tensor, rows: int = 12) -> dict[str, float]:
    """Perplexity in four quarters of windows as long as the full context."""
    starts = torch.linspace(0, len(stream) - MAXIMUM_POSITIONS, rows).long()[:, None]
    nats = nats_by_position(model, stream[starts + torch.arange(MAXIMUM_POSITIONS)])
    quarter = MAXIMUM_POSITIONS // 4
    return {
        f"{at}-{at + quarter}": math.exp(float(nats[at : at + quarter].mean())) for at in range(0, len(nats), quarter)
    }


def measure_acceptance(
    draft: LlamaForCausalLM, target: LlamaForCausalLM, streams: Streams, seed: int, rows: int = 40
) -> Acceptance:
    """Let the target go on from held-out prefixes, greedily and by sampling, and ask the draft at each token."""
    prompts = draw_windows(streams, rows, PROMPT_TOKENS, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    greedy = continuations(target, prompts, do_sample=False)
    wanted, offered, counted = next_token_probabilities(draft, target, greedy)
    matches = (wanted.argmax(-1) == offered.argmax(-1))[counted].float().mean()
    sampled = continuations(target, prompts, do_sample=True)
    wanted, offered, counted = next_token_probabilities(draft, target, sampled)
    overlap = torch.minimum(wanted, offered).sum(-1)[counted].mean()
    return Acceptance(float(matches), float(overlap))


def continuations(target: LlamaForCausalLM, prompts: torch.Tensor, do_sample: bool) -> torch.Tensor:
    tokens: torch.Tensor = target.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=CONTINUATION_TOKENS,
        do_sample=do_sample,
        **({"top_k": 0, "temperature": 1.0} if do_sample else {}),
    )
    return tokens


@torch.no_grad()
def next_token_probabilities(
    draft: LlamaForCausalLM, target: LlamaForCausalLM, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target's and draft's probabilities at each generated place, and the mask of places before the end."""
    places = slice(PROMPT_TOKENS - 1, -1)
    wanted = target(input_ids=tokens, use_cache=False).logits[:, places].float().softmax(-1)
    offered = draft(input_ids=tokens, use_cache=False).logits[:, places].float().softmax(-1)
    return wanted, offered, tokens[:, PROMPT_TOKENS:] != target.config.pad_token_id


@torch.no_grad()
def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    thinking: bool | None = None,
    max_new_tokens: int = 160,
) -> str:
    """The greedy answer to one question, special tokens kept so that the end shows."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    tokens = torch.tensor([tokenizer.encode(str(prompt), add_special_tokens=False)])
    generated = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_new_tokens, do_sample=False
    )
    return str(tokenizer.decode(generated[0, tokens.shape[1] :]))
