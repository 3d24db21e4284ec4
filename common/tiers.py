"""SLO tiers from a YAML file; their order in the file is the order in which their queues are read."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from common.errors import TiersError
from common.messages import Overload, Slo

DEFAULT_FILE = Path(__file__).with_name("tiers.yaml")


@dataclass(frozen=True, slots=True)
class Tier:
    """A named SLO; see ``tiers.yaml`` for the meaning of each field."""

    name: str
    value: float
    patience_s: float
    on_overload: Overload
    max_queued: int
    ttft_ms: float | None = None
    ttft_slowdown: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    last_round_tpot_ms: float | None = None

    def slo(self, last_round: bool = False) -> Slo | None:
        """The tier's SLO, None for best effort."""
        if self.tpot_ms is None:
            return None
        tpot_ms = self.last_round_tpot_ms if last_round and self.last_round_tpot_ms else self.tpot_ms
        return Slo(self.ttft_ms, self.ttft_slowdown, tpot_ms, self.thinking_tpot_ms)


@dataclass(frozen=True)
class Tiers:
    """All tiers, most urgent first, and the name of the default one."""

    tiers: tuple[Tier, ...]
    default: str

    @cached_property
    def by_name(self) -> dict[str, Tier]:
        """Tiers by name."""
        return {tier.name: tier for tier in self.tiers}

    @property
    def names(self) -> tuple[str, ...]:
        """Names in queue order."""
        return tuple(tier.name for tier in self.tiers)


def load_tiers(path: Path | None = None, tpot_scale: float = 1.0) -> Tiers:
    """Read a tiers file; ``tpot_scale`` stretches every TPOT to fit a slower engine.

    Raises TiersError naming the tier and the field that is wrong.
    """
    path = path or DEFAULT_FILE
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TiersError(f"{path}: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("tiers"), dict) or not raw["tiers"]:
        raise TiersError(f"{path}: needs a map 'tiers'")
    tiers = tuple(_tier(path, str(name), body, tpot_scale) for name, body in raw["tiers"].items())
    default = raw.get("default", tiers[0].name)
    if default not in [tier.name for tier in tiers]:
        raise TiersError(f"{path}: default tier {default!r} is not defined")
    return Tiers(tiers, default)


def _tier(path: Path, name: str, body: Any, tpot_scale: float) -> Tier:
    where = f"{path}: tier {name!r}"
    if not isinstance(body, dict):
        raise TiersError(f"{where}: must be a map")
    names = {str(key) for key in body}
    unknown = names - {field.name for field in fields(Tier) if field.name != "name"}
    missing = {"value", "patience_s", "on_overload", "max_queued"} - names
    if unknown or missing:
        raise TiersError(f"{where}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    for field, value in body.items():
        low = {"value": 0, "max_queued": 1}.get(field, 1e-9)
        if field != "on_overload" and (type(value) not in (int, float) or not low <= value < 1e9):
            raise TiersError(f"{where}: {field} must be a positive number")
    numbers = {key: float(value) for key, value in body.items() if key not in ("on_overload", "max_queued")}
    numbers |= {key: value * tpot_scale for key, value in numbers.items() if key.endswith("tpot_ms")}
    try:
        overload = Overload(body["on_overload"])
        tier = Tier(name, on_overload=overload, max_queued=int(body["max_queued"]), **numbers)
        tier.slo()
    except ValueError as error:
        raise TiersError(f"{where}: {error}") from error
    if tier.tpot_ms is None and (tier.ttft_ms or tier.ttft_slowdown or tier.thinking_tpot_ms):
        raise TiersError(f"{where}: an SLO needs tpot_ms")
    return tier
