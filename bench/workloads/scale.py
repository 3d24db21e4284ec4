"""Scaling of workloads: of the rate, by compressing time, and of lengths."""

from collections.abc import Iterable
from dataclasses import replace

from bench.workloads.item import Item, moved


def rate_of(items: Iterable[Item]) -> float:
    """Requests per second, rounds of sessions included, over the time in which they arrive."""
    times = [item.arrival_s for item in items]
    span_s = max(times) - min(times)
    if span_s <= 0:
        raise ValueError("all requests arrive at once: there is no rate")
    return len(times) / span_s


def scale_rate(items: Iterable[Item], factor: float) -> list[Item]:
    """The same requests ``factor`` times as fast; what a tool takes stays."""
    return [moved(item, item.arrival_s / factor) for item in items]


def scale_lengths(items: Iterable[Item], factor: float) -> list[Item]:
    """All token counts times ``factor``, at least 1."""

    def scaled(tokens: int) -> int:
        return max(1, round(tokens * factor))

    return [
        replace(
            item,
            prompt_tokens=scaled(item.prompt_tokens),
            output_tokens=scaled(item.output_tokens),
            thinking_tokens=min(scaled(item.output_tokens), scaled(item.thinking_tokens))
            if item.thinking_tokens
            else 0,
        )
        for item in items
    ]
