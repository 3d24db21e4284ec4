"""What each request of a workload was promised, on a preset's engines."""

from collections.abc import Sequence

from bench.workloads.item import Item
from common.messages import Slo
from common.presets import Preset
from common.slo import Objective
from common.tiers import Tier, Tiers


def slos(items: Sequence[Item], tiers: Tiers) -> list[tuple[Tier, Slo | None]]:
    """Tier and SLO of each request; the last round of a session has the tier's last-round TPOT.

    Raises KeyError for a tier that is not known.
    """
    last = {item.session: i for i, item in enumerate(items)}
    found = []
    for i, item in enumerate(items):
        tier = tiers.by_name[item.tier]
        in_session = item.after_s is not None or last[item.session] != i
        found.append((tier, tier.slo(last_round=in_session and last[item.session] == i)))
    return found


def objective(slo: Slo | None, item: Item, arrival_s: float, preset: Preset) -> Objective | None:
    """Absolute, from the zero-load prefill time of the prompt on this engine; None for best effort."""
    if slo is None:
        return None
    if slo.ttft_ms is not None:
        ttft_s = slo.ttft_ms / 1e3
    else:
        assert slo.ttft_slowdown is not None
        ttft_s = slo.ttft_slowdown * preset.latency.prefill_seconds(item.prompt_tokens, preset.max_batch_tokens)
    thinking_ms = slo.thinking_tpot_ms if item.thinking_tokens else None
    return Objective(arrival_s, ttft_s, slo.tpot_ms / 1e3, None if thinking_ms is None else thinking_ms / 1e3)
