"""How to ask each kind of system for an answer: the product, stock replicas, stock prefill and decode servers."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp

from bench.real.job import Answer, AnswerError, Job, raise_for_status
from bench.real.routing import Router
from bench.real.sse import events
from common.messages import Verdict


class Backend(Protocol):
    """A running system, as the load generator sees it."""

    async def ask(self, http: aiohttp.ClientSession, job: Job, answer: Answer) -> None:
        """Fill ``answer`` until the job has ended; raises AnswerError or aiohttp.ClientError."""

    promises: bool
    """Whether it says which SLOs it will keep."""

    @property
    def targets(self) -> Sequence["Backend"]:
        """Backends that between them reach every server."""


class Stock:
    """Stock vLLM servers behind a router that runs in this process, which spares them a proxy's time."""

    promises = False

    def __init__(self, router: Router, model: str, replicas: Sequence[str]) -> None:
        self._router = router
        self._model = model
        self._replicas = replicas

    @property
    def targets(self) -> Sequence[Backend]:
        """One for each server."""
        return [Stock(_Only(url), self._model, [url]) for url in self._replicas]

    async def ask(self, http: aiohttp.ClientSession, job: Job, answer: Answer) -> None:
        """See :class:`Backend`."""
        url = self._router.pick()
        answer.notes["replica"] = url
        try:
            await stream_completion(http, url, completion(self._model, job), answer)
        finally:
            self._router.done(url)


class _Only:
    def __init__(self, replica: str) -> None:
        self._replica = replica

    def pick(self) -> str:
        return self._replica

    def done(self, replica: str) -> None:
        pass


class Disaggregated:
    """Stock prefill and decode servers behind a static proxy in this process, round robin on either side.

    As vLLM's own proxies do: the prompt is sent to a prefill server for one token, and what that says about its KV
    cache goes with the whole request to a decode server, which streams from the first token on.
    """

    promises = False

    def __init__(self, prefill: Sequence[str], decode: Sequence[str], model: str) -> None:
        self._prefill, self._decode = itertools.cycle(prefill), itertools.cycle(decode)
        self._model = model

    @property
    def targets(self) -> Sequence[Backend]:
        """A request passes through both kinds."""
        return [self]

    async def ask(self, http: aiohttp.ClientSession, job: Job, answer: Answer) -> None:
        """See :class:`Backend`."""
        body = completion(self._model, job)
        first = body | {"max_tokens": 1, "stream": False, "kv_transfer_params": PREFILL_PARAMS}
        async with http.post(f"{next(self._prefill)}/v1/completions", json=first) as response:
            await raise_for_status(response)
            params = (await response.json())["kv_transfer_params"]
        await stream_completion(http, next(self._decode), body | {"kv_transfer_params": params}, answer)


PREFILL_PARAMS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def completion(model: str, job: Job) -> dict[str, Any]:
    """Body of vLLM's ``/v1/completions``."""
    return {
        "model": model,
        "prompt": list(job.prompt),
        "max_tokens": job.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


async def stream_completion(http: aiohttp.ClientSession, url: str, body: Mapping[str, Any], answer: Answer) -> None:
    """Note the tokens of a stream of vLLM's; raises AnswerError."""
    async with http.post(f"{url}/v1/completions", json=body) as response:
        await raise_for_status(response)
        async for event in events(response):
            if event.data == b"[DONE]":
                return
            data = json.loads(event.data)
            if "error" in data:
                raise AnswerError(str(data["error"])[:300])
            answer.came(len(data["choices"][0]["token_ids"] or ()), event.came_s)


class Product:
    """This product's ``/generate``, told each request's SLO."""

    promises = True

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def targets(self) -> Sequence[Backend]:
        """The api is the only way in."""
        return [self]

    async def ask(self, http: aiohttp.ClientSession, job: Job, answer: Answer) -> None:
        """See :class:`Backend`."""
        async with http.post(f"{self._url}/generate", json=generation(job)) as response:
            if response.status == 429:
                answer.verdicts.append(Verdict.REJECTED)
            await raise_for_status(response)
            async for event in events(response):
                data = json.loads(event.data)
                if event.name == "token":
                    answer.came(len(data["token_ids"]), event.came_s)
                elif event.name == "decision":
                    note_decision(answer, data)
                elif event.name == "error":
                    raise AnswerError(f"{data.get('code')}: {data.get('detail')}")


def generation(job: Job) -> dict[str, Any]:
    """Body of our ``/generate``."""
    body: dict[str, Any] = {
        "prompt_token_ids": list(job.prompt),
        "max_tokens": job.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    if job.slo is not None:
        body["slo"] = {
            name: getattr(job.slo, name)
            for name in ("ttft_ms", "tpot_ms", "thinking_tpot_ms")
            if getattr(job.slo, name) is not None
        }
    if job.session is not None:
        body |= {"session_id": job.session, "last_round": job.last_round}
    return body


def note_decision(answer: Answer, data: Mapping[str, Any]) -> None:
    """What our api says was decided; the last one counts, predictions are those of the last promise."""
    decision = data["decision"]
    verdict = Verdict(decision["verdict"])
    answer.verdicts.append(verdict)
    answer.notes["request"] = data["request_id"]
    answer.notes["decision"] = decision
    if verdict is Verdict.ADMITTED:
        predicted = data["slo"]["predicted"]
        answer.predicted_ttft_s = seconds(predicted["ttft_ms"])
        answer.predicted_tpot_s = seconds(predicted["tpot_ms"])


def seconds(milliseconds: float | None) -> float | None:
    """None stays None."""
    return None if milliseconds is None else milliseconds / 1e3
