"""How the batch policy in the engine core learns from its steps, on a scheduler that has nothing to schedule."""

import warnings
from types import SimpleNamespace

import pytest

from common.engine.exports import Reader
from common.engine.vllm_build import possible
from common.errors import EngineError
from common.latency_model import Batch, LatencyModel, Piece
from tests.common.engine.idle import Idle

MODEL = LatencyModel((Piece(5e-5, 0.0, 5e-3),), k_seq=1e-4)
DECODES = Batch(8, 8)


@pytest.mark.vllm
def test_batches_are_planned_with_the_machine_s_present_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's libraries deprecate
        from vllm.v1.core.sched.request_queue import FCFSRequestQueue

        from common.engine import vllm_scheduler
        from common.engine.vllm_batching import Planned
    monkeypatch.setattr(vllm_scheduler, "_die_with_parent", lambda: None)

    class Plans(Planned, Idle):
        """Our part alone."""

        def __init__(self, reader: Reader) -> None:
            extra = {"export": reader.path, "margin": None, "share": 0.05, "hop_s": 0.0}
            config = SimpleNamespace(additional_config={vllm_scheduler.EXTRA: extra})
            super().__init__(config, waiting=FCFSRequestQueue())

        def step(self, seconds: float) -> None:
            self._last_step_s = seconds
            self._measured((DECODES.tokens, DECODES.seqs, 0.0, 0.0, 0.0), seconds)

    reader = Reader()
    plans = Plans(reader)
    reader.tell(MODEL)
    plans._plan()
    assert plans._latency == MODEL
    for _ in range(20):
        plans.step(3 * MODEL.seconds(DECODES))
    assert plans._latency.seconds(DECODES) == pytest.approx(3 * MODEL.seconds(DECODES), rel=0.05)
    for _ in range(900):
        plans.step(3 * MODEL.seconds(DECODES))
    assert plans._former.margin < 0.1  # slow, but as predicted
    reader.tell(MODEL.scaled(3))
    plans._plan()
    reader.unlink()
    assert plans._latency.seconds(DECODES) == pytest.approx(3 * MODEL.seconds(DECODES), rel=0.05)


@pytest.mark.vllm
def test_a_vllm_that_the_policy_can_not_steer_forms_batches_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's libraries deprecate
        from vllm.v1.core.sched.scheduler import Scheduler

        from common.engine.vllm_batching import check_internals
    assert possible("slo", check_internals) == "slo"
    monkeypatch.setattr(Scheduler, "_reserve_prefill_lookahead", lambda self, request: 0)
    assert possible("slo", check_internals) == "stock"
    monkeypatch.delattr(Scheduler, "_preempt_request")
    with pytest.raises(EngineError, match="lacks _preempt_request"):
        check_internals()


def test_batches_of_vllm_itself_need_no_check() -> None:
    def check() -> None:
        raise EngineError("this vLLM can't be steered")

    assert possible("stock", check) == "stock"
    assert possible("slo", check) == "stock"
    assert possible("slo", lambda: None) == "slo"
