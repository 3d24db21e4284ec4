"""One plan after another: claims what can be planned, asks the policy, sends what it decided."""

import math
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from admission.arriving import Arriving
from admission.attainable import drain_s
from admission.cluster import Cluster
from admission.hops import HopEstimate
from admission.plan import ClusterState, Held, Plan, Policy
from admission.policies import make_policy, options_of
from admission.record import PlanLog
from admission.report import Report
from admission.sessions import Sessions
from admission.telling import Telling
from admission.window import Waiting, Window
from common.bus.interface import Bus, Claim, Room
from common.errors import BusError, SlosError
from common.messages import Decision, End, Progress, Record, State, Work
from common.settings import Settings
from common.telemetry.logs import get_logger
from common.tiers import Tiers

log = get_logger(__name__)

FALLBACK = "fcfs"
MEANWHILE = "edf"
"""Plans until the product's policy is compiled."""
IMPOSSIBLE = "impossible"
AGAIN_S = 1.0
"""Between two plans that fail altogether."""


@dataclass(frozen=True, slots=True)
class Lead:
    """This process leads, under this fencing token."""

    token: int


class Planning:
    """The state of a leader; all of it can be had again from the queue."""

    def __init__(
        self, bus: Bus, settings: Settings, tiers: Tiers, name: str, report: Report, clock: Callable[[], float]
    ) -> None:
        offline = [tier.name for tier in tiers.tiers if tier.slo() is None]
        self.window = Window(settings.window, tiers.names, offline)
        self.cluster = Cluster()
        self._bus = bus
        self._settings = settings
        self._tiers = tiers
        self._name = name
        self._report = report
        self._clock = clock
        self._wanted: Policy = make_policy(settings.policy, settings)
        self._meanwhile: Policy = make_policy(MEANWHILE, settings)
        self._policy = self._meanwhile
        self._fallback: Policy = make_policy(FALLBACK, settings)
        self._refusing: Policy = make_policy(IMPOSSIBLE, settings)
        self._sessions = Sessions()
        self._hops = HopEstimate(settings.hop_ms / 1e3)
        self._arriving = Arriving()
        self._expected: dict[str, float] = {}
        self._log = PlanLog(settings.plan_log, options_of(settings)) if settings.plan_log else None
        self._cycle = 0
        self._claims_unsure = False
        self._may_claim = True
        self.telling = Telling(self.doubt_claims)

    @property
    def cycle(self) -> int:
        """How many plans were made."""
        return self._cycle

    def warm_up(self) -> None:
        """Compile what the policy has to compile, then plan with it; blocks for seconds, so not for the event loop."""
        self._wanted.warm_up()
        if self._policy is self._meanwhile:  # nobody has chosen another
            self._report.fallback(False)
            self._policy = self._wanted

    def use(self, policy: Policy) -> None:
        """Plan with another policy from now on; what it plans is not logged, as a replay would not know it."""
        self._policy = policy

    def take_over(self, records: Sequence[Record], claims: Sequence[Claim]) -> None:
        """Start from what former leaders had dispatched and what they held."""
        for record in records:
            self.cluster.adopt(record)
        self._hold(claims)

    def clear(self) -> None:
        """Somebody else leads."""
        self.telling.give_up()
        self._may_claim = True
        self._expected.clear()
        self.window.clear()
        self.cluster.clear()

    def doubt_claims(self) -> None:
        """The answer to a claim may have been lost: ask again for what is held before the next plan."""
        self._claims_unsure = True

    def arrived(self) -> None:
        """There may be requests to claim."""
        self._may_claim = True

    def progressed(self, item: Progress) -> None:
        """A first token or an end."""
        expected_s = self._expected.pop(item.id, None)
        if expected_s is not None and not item.ended:
            self._hops.observe(item.time_s - expected_s, self._clock())
        ended = self.cluster.progressed(item)
        if ended is not None:
            self._sessions.ended(ended, item)

    def cancelled(self, request_id: str) -> None:
        """A request ended from outside."""
        self.window.pop(request_id)
        self.forget(request_id)

    def forget(self, request_id: str) -> None:
        """A dispatched request ended, or was put back."""
        self.cluster.forget(request_id)
        self._sessions.forget(request_id)
        self._expected.pop(request_id, None)

    async def plan_once(self, lead: Lead) -> float | None:
        """Claim, plan and send; returns when to plan again at the latest. Raises LeadershipLost and BusError.

        The queue is told while the next plan is made already, which knows what was decided. If that fails, the next
        call raises it, and what was not told is claimed again.
        """
        if self.telling.ended:
            await self.telling.wait()
        await self._claim()
        await self._expire()
        if not len(self.window):
            return None
        self.window.resolve(self.cluster.workers.values())
        self._cycle += 1
        now_s = self._clock()
        await self._refuse_impossible(lead, now_s)
        state = self._state([waiting.held for waiting in self.window.in_view()], now_s)
        plan = self._call_policy(state, now_s)
        self._report.planned(state, plan, now_s, self._clock())
        await self._apply(plan, lead, now_s, state)
        return plan.wake_s

    def _state(self, held: Sequence[Held], now_s: float) -> ClusterState:
        return ClusterState(
            cycle=self._cycle,
            held=[self._sessions.apply(one) for one in held],
            running=self.cluster.running,
            workers=self.cluster.workers,
            hop_s=self._hops.seconds(now_s),
            survival=self.cluster.survival,
            arriving=self._arriving.rate(now_s),
        )

    def _call_policy(self, state: ClusterState, now_s: float) -> Plan:
        try:
            with self._report.planning():
                plan = self._policy.plan(state, now_s)
        except Exception:
            log.exception("the policy failed; serving first come first served", policy=self._settings.policy)
            self._report.policy_failed()
            return self._call_fallback(state, now_s)
        self._report.fallback(self._policy is self._meanwhile)
        if self._policy is self._wanted:
            self._keep(self._settings.policy, state, now_s, plan)
        elif self._policy is self._meanwhile:
            self._keep(MEANWHILE, state, now_s, plan)
        return plan

    def _call_fallback(self, state: ClusterState, now_s: float) -> Plan:
        """What is held stays held if even that fails; a worker that leaves may be all that was wrong."""
        try:
            plan = self._fallback.plan(state, now_s)
        except Exception:
            log.exception("the fallback failed as well; nothing is planned for a moment")
            return Plan({}, {}, {}, now_s + AGAIN_S)
        self._keep(FALLBACK, state, now_s, plan)
        return plan

    def _keep(self, policy: str, state: ClusterState, now_s: float, plan: Plan) -> None:
        """Log a plan; a full disk must not stop planning."""
        if self._log is None:
            return
        try:
            self._log.add(policy, state, now_s, plan)
        except OSError as error:
            log.error("plans are not logged any more", error=str(error))
            self._log = None

    def close(self) -> None:
        """Stop telling, and close the log of plans."""
        self.telling.give_up()
        if self._log is not None:
            self._log.close()

    async def _claim(self) -> None:
        if self._claims_unsure:
            await self.telling.wait()
            mine = await self._bus.reclaim(self._tiers.names, self._name)
            self._claims_unsure = False
            unknown = [claim for claim in mine if claim.request.id not in self.window]
            for claim in unknown:  # who was to be dispatched was not
                self.forget(claim.request.id)
            self._hold(unknown)
        if not self._may_claim and not len(self.window):
            return
        rooms, shared = self.window.rooms()
        self._may_claim = False
        try:
            claimed = await self._bus.claim_each(rooms, shared, self._name)
        except BusError:
            self._may_claim = True
            raise
        self._may_claim |= _may_be_more(claimed.claims, rooms, shared)
        self._hold(claimed.claims)
        self.cluster.busy(claimed.busy_until_s)

    def _hold(self, claims: Sequence[Claim]) -> None:
        if claims:
            now_s = self._clock()
            self.window.add(claims, self.cluster.workers.values(), now_s)
            wanted = [claim.request for claim in claims if claim.request.slo is not None]
            self._arriving.add(sum(len(request.prompt) for request in wanted), now_s)

    async def _expire(self) -> None:
        gone = self.window.out_of_patience(self._clock())
        tokens: Counter[str] = Counter()
        for waiting in self.window if gone else ():
            tokens[waiting.held.tier] += waiting.held.need_tokens
        for waiting in gone:
            detail = f"no capacity within the patience of {waiting.held.patience_s:g} s"
            retry_after_s = drain_s(tokens[waiting.held.tier], self.cluster.workers.values())
            await self._end(waiting, End(State.EXPIRED, "patience_exceeded", detail, retry_after_s))

    async def _refuse_impossible(self, lead: Lead, now_s: float) -> None:
        """At once, whatever its sender wants on overload, and under any policy: this is no overload."""
        fresh = self.window.undecided() if self.cluster.workers else []
        if not fresh:
            return
        state = self._state([waiting.held for waiting in fresh], now_s)
        plan = self._refusing.plan(state, now_s)
        if plan.reject:
            self._keep(IMPOSSIBLE, state, now_s, plan)
            await self._apply(plan, lead, now_s, state)

    async def _apply(self, plan: Plan, lead: Lead, now_s: float, state: ClusterState) -> None:
        """Begin to tell the queue, once it knows what was decided before."""
        await self.telling.wait()
        self.telling.begin(self._decide(self._with_inputs(plan, now_s, state), lead, now_s, state.hop_s))

    def _decide(self, plan: Plan, lead: Lead, now_s: float, hop_s: float) -> Sequence[Coroutine[Any, Any, None]]:
        """Take in what was decided, for the next plan; returns how the queue is told."""
        telling = []
        for request_id, decision in plan.dispatch.items():
            waiting = None if decision.prefill_worker is None else self.window.pop(request_id)
            if waiting is not None:
                telling.append(self._dispatch(waiting, self._dispatched(waiting, decision, hop_s), lead))
        for request_id, decision in plan.defer.items():
            waiting = self.window.get(request_id)
            if waiting is not None:
                self.window.decided(request_id, decision, deferred=True)
                telling.append(self._defer(waiting, decision, lead, now_s))
        for request_id, decision in plan.reject.items():
            waiting = self.window.pop(request_id)
            if waiting is not None:
                telling.append(self._reject(waiting, decision, lead, now_s))
        return telling

    def _with_inputs(self, plan: Plan, now_s: float, state: ClusterState) -> Plan:
        """The decisions with what they were made from."""
        shared: dict[str, float] = {
            "held": len(state.held),
            "running": len(state.running),
            "workers": len(state.workers),
            "hop_ms": state.hop_s * 1e3,
        }
        held = {one.id: one for one in state.held}

        def told(request_id: str, decision: Decision) -> Decision:
            one = held.get(request_id)
            if one is None:
                return decision
            own = {
                "need_tokens": one.need_tokens,
                "cached_tokens": 0 if one.prefix_worker is None else one.prefix_tokens,
                "waited_ms": (now_s - one.arrival_s) * 1e3,
            }
            return replace(decision, inputs=shared | own)

        return replace(
            plan,
            dispatch={id_: told(id_, decision) for id_, decision in plan.dispatch.items()},
            defer={id_: told(id_, decision) for id_, decision in plan.defer.items()},
            reject={id_: told(id_, decision) for id_, decision in plan.reject.items()},
        )

    def _dispatched(self, waiting: Waiting, decision: Decision, hop_s: float) -> Work:
        claim, request_id = waiting.claim, waiting.claim.request.id
        assert decision.prefill_worker is not None
        self.cluster.dispatched(waiting.held, decision, claim.attempt)
        self._sessions.dispatched(waiting.held, decision.prefill_worker)
        if decision.predicted_ttft_ms is not None:
            self._expected[request_id] = claim.request.arrival_s + decision.predicted_ttft_ms / 1e3 - hop_s
        trace = self._report.admission_span(waiting, decision, self._clock())
        return Work(
            claim.request, decision, claim.attempt, claim.generated, trace=trace, first_token_s=claim.first_token_s
        )

    async def _dispatch(self, waiting: Waiting, work: Work, lead: Lead) -> None:
        if await self._bus.dispatch(waiting.claim, work, lead.token):
            self._report.decided(waiting, work.decision, self._clock())
        else:
            self.forget(work.request.id)

    async def _defer(self, waiting: Waiting, decision: Decision, lead: Lead, now_s: float) -> None:
        try:
            if await self._bus.note(waiting.claim, decision, lead.token):
                self._report.decided(waiting, decision, now_s)
        except SlosError:
            self.window.pop(waiting.claim.request.id)  # to be claimed, and told, again
            raise

    async def _reject(self, waiting: Waiting, decision: Decision, lead: Lead, now_s: float) -> None:
        self._report.decided(waiting, decision, now_s)
        self._report.admission_span(waiting, decision, self._clock())
        await self._bus.note(waiting.claim, decision, lead.token)
        patience = decision.reason.startswith("patience")
        state, reason = (State.EXPIRED, "patience_exceeded") if patience else (State.REJECTED, "slo_not_possible")
        await self._end(waiting, End(state, reason, decision.reason, decision.retry_after_s))

    async def _end(self, waiting: Waiting, end: End) -> None:
        claim = waiting.claim
        if end.retry_after_s is not None and not math.isfinite(end.retry_after_s):
            end = replace(end, retry_after_s=None)
        await self._bus.end(claim.request.id, end, claim.attempt)
        self.window.pop(claim.request.id)


def _may_be_more(claims: Sequence[Claim], rooms: Mapping[str, Room], shared: int) -> bool:
    """Whether there may have been no room for all that waits."""
    count = Counter(claim.request.tier for claim in claims)
    left = shared - sum(max(0, count[tier] - room.own) for tier, room in rooms.items())
    return any(count[tier] >= (room.most if left > 0 else min(room.own, room.most)) for tier, room in rooms.items())
