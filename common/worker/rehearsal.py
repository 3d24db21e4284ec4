"""Work of a worker's own, done before it registers: what runs for the first time is slow, and might be promised."""

import time
import uuid

from common.engine.interface import Engine, Facts
from common.errors import EngineDead, SlosError
from common.messages import Decision, Overload, Request, Sampling, Stage, Verdict, Work
from common.telemetry.logs import get_logger
from common.worker.job import WorkJob
from common.worker.outbox import Outbox

ROUNDS = 2
PROMPT_TOKENS = 16
OUTPUT_TOKENS = 8

log = get_logger(__name__)


async def rehearse(worker: str, engine: Engine, facts: Facts, outbox: Outbox) -> None:
    """Run a few requests that nobody has sent: the queue refuses their frames. Raises EngineDead."""
    prompt = tuple(range(min(PROMPT_TOKENS, facts.vocab_size, facts.max_model_len - OUTPUT_TOKENS)))
    for number in range(ROUNDS if prompt else 0):
        work = _work(f"rehearsal-{number}-{uuid.uuid4().hex}", prompt)
        try:
            await WorkJob(work, Stage.DECODE, worker, engine, outbox).run()
        except EngineDead:
            raise
        except SlosError as error:
            log.warning("a rehearsal failed", worker=worker, error=str(error))


def _work(request_id: str, prompt: tuple[int, ...]) -> Work:
    now_s = time.time()
    request = Request(
        id=request_id,
        tier="",
        tenant="",
        arrival_s=now_s,
        prompt=prompt,
        sampling=Sampling(max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True),
        slo=None,
        overload=Overload.DEFER,
        value=1.0,
        patience_ms=1e3,
    )
    return Work(request, Decision(Verdict.DEFERRED, "rehearsal", 0, now_s), 1)
