import asyncio

from tests.api.conftest import Api, Serve
from tests.api.pipeline import deferred, eventually
from tests.api.test_bad_input import check_problem


async def test_a_finished_request_shows_state_decision_timings_and_usage(api: Api) -> None:
    answer = await api.client.post("/generate", json={"prompt": "x y", "tier": "code"})
    request_id = answer.json()["request_id"]
    body = (await api.client.get(f"/requests/{request_id}")).json()
    assert body["state"] == "done"
    assert body["end"] == {"state": "done", "reason": "length"}
    assert body["tier"] == "code"
    assert body["decision"]["verdict"] == "admitted"
    assert body["decision"]["inputs"] == {"held": 2.0, "hop_ms": 3.5}
    assert body["decision"]["retry_after_s"] is None
    assert body["predicted"] == {"ttft_ms": 12.5, "tpot_ms": 3.25}
    assert body["prefill_worker"] == "prefill-1"
    assert body["usage"] == answer.json()["usage"]
    assert "timings" in body


async def test_a_lookup_shows_neither_prompt_nor_answer(api: Api) -> None:
    answer = await api.client.post("/generate", json={"prompt_token_ids": [1234, 1235]})
    text = (await api.client.get(f"/requests/{answer.json()['request_id']}")).text
    assert "1234" not in text


async def test_an_unknown_request_is_not_found(api: Api) -> None:
    for name in ("req-nobody", "a" * 300, "%00", "a%20b", "a/b"):
        check_problem(await api.client.get(f"/requests/{name}"), 404)
        check_problem(await api.client.delete(f"/requests/{name}"), 404)


async def test_deleting_a_waiting_request_cancels_it_and_tells_its_client(serve: Serve) -> None:
    async with serve(decide=deferred) as api:
        waiting = asyncio.create_task(api.client.post("/generate", json={"prompt": "x"}))
        await eventually(lambda: api.state.ingress.open == 1)
        request_id = next(iter(api.state.ingress.relay.waiting))
        response = await api.client.delete(f"/requests/{request_id}")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
        assert check_problem(await waiting, 409)["code"] == "cancelled_by_client"


async def test_deleting_a_running_request_cancels_it_at_its_worker(serve: Serve) -> None:
    async with serve(pause_after=1) as api:
        waiting = asyncio.create_task(api.client.post("/generate", json={"prompt": "some text"}))
        await api.pipeline.paused.wait()
        request_id = api.pipeline.works[0].request.id
        assert (await api.client.delete(f"/requests/{request_id}")).status_code == 200
        assert (await api.pipeline.cancelled(request_id)).reason == "cancelled_by_client"
        await waiting


async def test_deleting_what_has_ended_is_a_conflict(api: Api) -> None:
    answer = await api.client.post("/generate", json={"prompt": "x"})
    response = await api.client.delete(f"/requests/{answer.json()['request_id']}")
    assert check_problem(response, 409)["state"] == "done"
