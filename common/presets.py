"""Named GPUs with a model: what an engine there costs, for simulated ones and until one is measured. In seconds.

Latency fits ``opt-*``, ``qwen*`` and ``r1-*``: SLOs-Serve (arXiv 2504.08784) and its artefacts, as the project's design
notes give them. ``llama2-*``: Vidur's profiles of linear layers (R2 >= 0.993) with attention from KV bytes over 85 % of
memory bandwidth; kernels only, without the host's time. KV capacity is what memory leaves at 90 % use once
weights and about 2 GB of activations a GPU are in. Links: 200 Gbit/s for A100, 400 Gbit/s for H100 hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.latency_model import LatencyModel, Piece

A100_LINK = 25e9
H100_LINK = 50e9


@dataclass(frozen=True, slots=True)
class Preset:
    """One engine. ``acceptance`` is the chance that a drafted token is right; drafting needs a ``k_draft``."""

    name: str
    latency: LatencyModel
    kv_tokens: int
    kv_bytes_per_token: int
    link_bytes_per_s: float
    max_batch_tokens: int = 2048
    max_seqs: int = 256
    block_size: int = 16
    acceptance: float = 0.7
    transfer_setup_s: float = 0.002

    @property
    def drafts(self) -> bool:
        """Whether there is a draft model."""
        return any(piece.k_draft > 0 for piece in self.latency.pieces)

    @property
    def blocks(self) -> int:
        """KV blocks."""
        return self.kv_tokens // self.block_size

    def transfer_s(self, tokens: int) -> float:
        """How long the KV of so many tokens takes on the link."""
        return self.transfer_setup_s + tokens * self.kv_bytes_per_token / self.link_bytes_per_s


def _linear(k_token: float, k_draft: float, base: float) -> LatencyModel:
    return LatencyModel((Piece(k_token, k_draft, base),))


def _floored(floor: float, k_token: float, base: float, k_kv: float) -> LatencyModel:
    return LatencyModel((Piece(0.0, 0.0, floor), Piece(k_token, 0.0, base)), k_kv=k_kv)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("opt-13b-tp2-a100", _linear(7.21e-5, 3.34e-3, 0.0317), 51_000, 819_200, A100_LINK),
        Preset("opt-13b-h100", _linear(4.18e-5, 0.0, 0.0274), 53_000, 819_200, H100_LINK),
        Preset(
            "opt-6.7b-a100",
            LatencyModel((Piece(6.88e-5, 3.5e-3, 0.0248), Piece(7.52e-5, 3.5e-3, 0.0030))),
            40_000,
            524_288,
            A100_LINK,
        ),
        Preset("opt-30b-tp4-a100", _linear(9.31e-5, 2.80e-3, 0.0379), 55_000, 1_376_256, A100_LINK),
        Preset(
            "qwen2.5-7b-h100",
            LatencyModel((Piece(5.1e-5, 0.0, 0.014),), k_seq=1.69e-5, k_kv=8e-8),
            940_000,
            57_344,
            H100_LINK,
        ),
        Preset("llama2-70b-tp4-h100", _floored(0.0214, 6.298e-5, 0.01413, 2.88e-8), 430_000, 327_680, H100_LINK),
        Preset("llama2-70b-tp4-a100", _floored(0.03065, 1.7975e-4, 0.02292, 4.73e-8), 430_000, 327_680, A100_LINK),
        Preset("llama2-7b-a100", _floored(0.00958, 6.18e-5, 0.00457, 2.9e-7), 108_000, 524_288, A100_LINK),
        Preset("llama2-7b-h100", _floored(0.00593, 1.913e-5, 0.00424, 1.841e-7), 108_000, 524_288, H100_LINK),
        Preset("llama3-8b-a100", _floored(0.01046, 6.688e-5, 0.00543, 7.56e-8), 410_000, 131_072, A100_LINK),
        Preset("r1-distill-1.5b-a100", _linear(2.9e-4, 0.0, 0.018), 1_060_000, 28_672, A100_LINK),
    )
}
