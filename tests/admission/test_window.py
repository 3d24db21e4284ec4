"""The window is bounded, and no tier starves in it."""

from admission.window import Window
from common.bus.interface import Claim
from common.messages import Decision, Verdict
from tests.factories import make_request, make_worker


def room(window: Window) -> dict[str, int]:
    """What each tier could claim if it were the only one."""
    return {tier: one.most for tier, one in window.rooms()[0].items()}


def claims(tier: str, count: int) -> list[Claim]:
    return [Claim(entry="1-1", request=make_request(tier=tier), attempt=1) for _ in range(count)]


def test_a_tier_may_fill_the_window_but_for_what_is_kept_for_others() -> None:
    window = Window(16, ["a", "b"])
    assert room(window) == {"a": 12, "b": 12}
    window.add(claims("a", 12), [], 0.0)
    assert room(window) == {"a": 0, "b": 4}


def test_the_kept_room_is_given_back_when_its_tier_uses_it() -> None:
    window = Window(16, ["a", "b"])
    window.add(claims("b", 4), [], 0.0)
    assert room(window) == {"a": 12, "b": 8}


def test_an_slo_in_slowdowns_is_resolved_once_an_engine_is_known() -> None:
    from common.messages import Slo

    window = Window(4, ["chat"])
    request = make_request(slo=Slo(ttft_ms=None, ttft_slowdown=5.0, tpot_ms=50.0), prompt=tuple(range(100)))
    window.add([Claim("1-1", request, 1)], [], 0.0)
    waiting = window.get(request.id)
    assert waiting is not None
    assert waiting.held.objective is None
    window.resolve([make_worker()])
    resolved = window.get(request.id)
    assert resolved is not None
    assert resolved.held.objective is not None
    assert abs(resolved.held.objective.ttft_s - 5 * 0.0151) < 1e-9


def test_patience_is_counted_from_arrival() -> None:
    window = Window(4, ["chat"])
    request = make_request(arrival_s=100.0, patience_ms=2000.0)
    window.add([Claim("1-1", request, 1)], [], 101.0)
    assert window.out_of_patience(102.0) == []
    assert [waiting.claim.request.id for waiting in window.out_of_patience(102.1)] == [request.id]


def deferred(window: Window, claim: Claim) -> None:
    decision = Decision(Verdict.DEFERRED, "prefill_capacity", 1, 100.0)
    window.decided(claim.request.id, decision, deferred=True)


def test_what_was_deferred_does_not_keep_new_requests_from_being_seen() -> None:
    window = Window(16, ["chat"])
    for _ in range(100):
        found = claims("chat", room(window)["chat"])
        assert len(found) >= 12
        window.add(found, [], 0.0)
        assert {waiting.claim.request.id for waiting in window.in_view()} >= {claim.request.id for claim in found}
        assert len(window.in_view()) <= 16
        for claim in found:
            deferred(window, claim)


def test_a_plan_sees_the_oldest_and_the_latest_of_what_was_deferred() -> None:
    window = Window(16, ["chat"])
    found = claims("chat", 10)
    window.add(found, [], 0.0)
    for claim in found:
        deferred(window, claim)
    seen = {waiting.claim.request.id for waiting in window.in_view()}
    assert seen == {found[i].request.id for i in (0, 1, 8, 9)}
    window.pop(found[0].request.id)
    assert found[2].request.id in {waiting.claim.request.id for waiting in window.in_view()}


def test_offline_work_takes_only_its_share() -> None:
    window = Window(16, ["chat", "batch"], offline=["batch"])
    window.add(claims("batch", room(window)["batch"]), [], 0.0)
    assert room(window) == {"chat": 12, "batch": 0}


def test_who_is_out_of_patience_is_named_until_it_is_gone() -> None:
    window = Window(4, ["chat"])
    found = [Claim("1-1", make_request(arrival_s=100.0, patience_ms=ms), 1) for ms in (3000.0, 1000.0)]
    window.add(found, [], 100.0)
    for _ in range(2):
        assert [waiting.claim for waiting in window.out_of_patience(102.0)] == [found[1]]
    window.pop(found[1].request.id)
    assert window.out_of_patience(102.0) == []
