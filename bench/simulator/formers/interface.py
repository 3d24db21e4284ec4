"""What every batch former of a simulated engine is given and gives."""

from typing import NamedTuple, Protocol

import numpy as np

from bench.simulator.book import Book, Ints
from common.presets import Preset

NONE: Ints = np.zeros(0, np.int64)


class View(NamedTuple):
    """An engine's state between two iterations. ``members`` are rows of the book, in order of their coming.

    The KV of those in ``pulling`` is on its way; they are no members yet.
    """

    book: Book
    members: Ints
    free_blocks: int
    preset: Preset
    max_tokens: int
    pulling: Ints = NONE


class Formed(NamedTuple):
    """A batch: rows, tokens of each (0: let in to pull its KV), drafts among them, and rows that lose their KV."""

    rows: Ints
    tokens: Ints
    drafts: Ints
    preempt: Ints
    seconds: float


class Former(Protocol):
    """Called once for each iteration of one engine, and told afterwards how drafts fared."""

    def form(self, view: View, now_s: float) -> Formed:
        """The next batch; empty if nothing can be done now."""

    def verified(self, tier: int, drafted: int, accepted: int) -> None:
        """A verification of ``drafted`` tokens ended."""
