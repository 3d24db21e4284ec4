"""Training by the clock: the target on the corpus, then the draft on the target's probabilities."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from bench.tiny_model.batches import Streams, draw_windows

MATRIX_LEARNING_RATE = 4e-3
EMBEDDING_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP_SHARE = 0.03
FINAL_RATE_SHARE = 0.02
GRADIENT_NORM = 1.0
REPORT_EVERY_S = 15.0

Loss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """`rows` windows of `window` tokens a step, until this share of the time is spent."""

    until_share: float
    rows: int
    window: int


# Short windows learn most per second; the long ones at the end teach positions up to the full context.
PHASES = (Phase(0.72, 16, 256), Phase(0.86, 4, 1024), Phase(1.01, 2, 4096))


@dataclass(frozen=True, slots=True)
class Training:
    """What one run of `train` did."""

    steps: int
    tokens: int
    seconds: float
    loss: float


def next_token_loss(model: LlamaForCausalLM) -> Loss:
    """Cross entropy of the next token, in nats."""

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        logits = logits_of(model, tokens)[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> Loss:
    """KL divergence from the target plus total variation, which is what speculative sampling rejects."""

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = logits_of(target, tokens).log_softmax(-1)
        offered = logits_of(draft, tokens).log_softmax(-1)
        probability = wanted.exp()
        divergence = (probability * (wanted - offered)).sum(-1)
        variation = 0.5 * (probability - offered.exp()).abs().sum(-1)
        return (divergence + variation).mean()

    return loss


def logits_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Float32 logits, rows x window x vocabulary, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()


def train(
    name: str,
    model: LlamaForCausalLM,
    loss_of: Loss,
    streams: Streams,
    seconds: float,
    seed: int,
    report: Callable[[str], None],
    rate_share: float = 1.0,
) -> Training:
    """Train `model` in place for `seconds` of wall time, at `rate_share` of the usual learning rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizers = make_optimizers(model)
    start = reported_at = time.monotonic()
    steps, seen, smoothed = 0, 0, float("nan")
    for share, phase in phases_by_clock(start, seconds):
        set_rate(optimizers, rate_share * rate_at(share))
        loss = loss_of(draw_windows(streams, phase.rows, phase.window, generator))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        steps, seen = steps + 1, seen + phase.rows * phase.window
        smoothed = loss.item() if steps == 1 else 0.95 * smoothed + 0.05 * loss.item()
        now = time.monotonic()
        if now - reported_at > REPORT_EVERY_S:
            reported_at = now
            left = max(0.0, start + seconds - now)
            report(f"{name}: step {steps} loss {smoothed:.3f} {seen / (now - start):.0f} tokens/s {left:.0f} s left")
    return Training(steps, seen, time.monotonic() - start, smoothed)


def phases_by_clock(start: float, seconds: float) -> Iterator[tuple[float, Phase]]:
    """The share of the time spent and the phase it falls in, once per step, until the time is over."""
    while (share := (time.monotonic() - start) / seconds) < 1:
        yield share, next(phase for phase in PHASES if share < phase.until_share)


def rate_at(share: float) -> float:
    """Linear warm-up, then a linear fall to `FINAL_RATE_SHARE`."""
    if share < WARM_UP_SHARE:
        return max(share / WARM_UP_SHARE, 0.01)
    return 1 - (1 - FINAL_RATE_SHARE) * (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    layers = list(model.model.layers.parameters())
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=EMBEDDING_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share
