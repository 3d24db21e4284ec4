"""Work is conserved: sent once, computed once, and without a price for packing no engine idles while work waits."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from admission.options import PlannerOptions
from admission.policies.ours import Ours
from tests.admission.follower import Follower
from tests.admission.test_promises import MODELS, workload
from tests.factories import make_worker


class Watched(Follower):
    """Looks after every plan for engines that have nothing to do."""

    sent: Counter[str]
    idle_s: list[float]

    def _plan(self, now_s: float) -> None:
        before = set(self.held)
        super()._plan(now_s)
        self.sent.update(before - set(self.held))
        if self.held and any(not engine.jobs for engine in self.engines.values()):
            self.idle_s.append(now_s)


@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)), st.integers(1, 3), st.sampled_from([5.0, 20.0]))
@settings(max_examples=25)
def test_no_engine_idles_while_work_waits_and_nothing_is_computed_twice(
    seed: int, name: str, workers: int, rate: float
) -> None:
    rng = random.Random(seed)
    fleet = [make_worker(id=f"w{i}", latency=MODELS[name], total_blocks=100_000) for i in range(workers)]
    watched = Watched(Ours(PlannerOptions(pack_s=0.0)), fleet)
    watched.sent, watched.idle_s = Counter(), []
    jobs = workload(rng, 40, MODELS[name], rate)
    watched.run(jobs)
    assert watched.idle_s == []
    assert watched.sent == Counter(job.held.id for job in jobs)
    served = [job for job in jobs if not job.rejected]
    assert all(len(job.times_s) == job.output for job in served)
    assert all(job.computed == job.held.need_tokens + job.output - 1 for job in served)
