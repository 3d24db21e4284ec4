"""KV that simulated producers hold for a pull, and where consumers of the same process find it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class HeldKv:
    """Blocks of one producer that wait to be pulled, each until its lease ends; ``give_back`` frees them."""

    give_back: Callable[[int], None]
    _held: dict[str, tuple[int, float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, blocks: int, until_s: float) -> str:
        """Hold blocks; returns the key of the hand-off."""
        key = uuid.uuid4().hex
        self._held[key] = (blocks, until_s)
        return key

    def drop(self, key: str) -> bool:
        """Free what a key holds; False if that is gone already."""
        blocks, _ = self._held.pop(key, (None, 0.0))
        if blocks is None:
            return False
        self.give_back(blocks)
        return True

    def expire(self, now_s: float) -> None:
        """Free what is past its lease."""
        for key in [key for key, (_, until_s) in self._held.items() if until_s <= now_s]:
            self.drop(key)

    def next_expiry_s(self) -> float | None:
        """When the next lease ends, None if nothing is held."""
        return min((until_s for _, until_s in self._held.values()), default=None)


@dataclass(slots=True)
class KvRegistry:
    """Which simulated engines of this process hold KV; shared by those that pull from each other."""

    engines: dict[str, HeldKv] = field(default_factory=dict)

    def fetch(self, producer: str, key: str) -> bool:
        """Take KV from its producer, which frees it; False if it is gone or the producer is."""
        held = self.engines.get(producer)
        return held is not None and held.drop(key)
