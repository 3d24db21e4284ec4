"""Runs docker-compose.yml with two workers of each kind, sends requests through it, and takes it down again.

``python deploy/compose_test.py`` (``make compose-test``) needs a container engine (``DOCKER_HOST`` is honoured) and
Compose 1.29 or 2. The last line is one JSON object; the exit code is 0 only if everything in it holds. Where Jaeger's
image can't be had, an OTLP receiver of this repository takes its place.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli.generate import events
from common.cli.processes import free_port
from deploy.compose import Compose, ComposeError

READY_TIMEOUT_S = 600.0
SPANS_TIMEOUT_S = 60.0
TIERS = ("chat", "code", "summarize", "tool", "reasoning", "batch")
ALWAYS = frozenset({"POST /generate", "admission", "prefill"})
"""Spans of every request; a second token adds ``decode``, and another worker for it ``kv.transfer``."""
ENVIRONMENT = {"COMPOSE_PROFILES": "cpu", "SLOS_PREFILL_MAY": "prefill", "SLOS_DECODE_MAY": "decode"}
"""Each kind of worker keeps to its own stage, so that KV has to travel between containers."""


@dataclass
class Result:
    """What is printed at the end; ``failures`` is empty if everything held."""

    requests: int = 0
    ok: int = 0
    streams: int = 0
    spans_ok: int = 0
    handed_off: int = 0
    workers: int = 0
    published: list[str] = field(default_factory=list)
    drained: bool = False
    traces_in: str = ""
    start_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> bool:
        """Note what does not hold."""
        if not holds:
            say(f"FAILED: {what}")
            self.failures.append(what)
        return holds


@dataclass(frozen=True, slots=True)
class Answer:
    """What is needed of an answer to check its trace."""

    request_id: str
    tokens: int
    handed_off: bool

    @property
    def spans(self) -> frozenset[str]:
        """What its trace must hold."""
        if self.tokens == 1:
            return ALWAYS
        return ALWAYS | {"decode", "kv.transfer"} if self.handed_off else ALWAYS | {"decode"}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"compose-test: {text}", file=sys.stderr, flush=True)


async def wait_ready(client: httpx.AsyncClient, compose: Compose, result: Result) -> bool:
    """Poll ``/readyz`` until it answers 200 and both pairs of workers are healthy."""
    begun = time.monotonic()
    seen = ""
    while time.monotonic() - begun < READY_TIMEOUT_S:
        try:
            response = await client.get("/readyz")
            now = "ready" if response.is_success else response.text
        except httpx.HTTPError as error:
            now = type(error).__name__
        healthy = compose.healthy("prefill_worker") + compose.healthy("decode_worker") if now == "ready" else 0
        if f"{now} {healthy}" != seen:
            seen = f"{now} {healthy}"
            say(f"{time.monotonic() - begun:.0f} s: {now}, {healthy} of 4 workers healthy")
        if healthy == 4:
            result.workers, result.start_s = healthy, round(time.monotonic() - begun, 1)
            return True
        await asyncio.sleep(1.0)
    return result.check(False, f"not ready after {READY_TIMEOUT_S:.0f} s: {seen}")


async def send(client: httpx.AsyncClient, number: int, result: Result) -> Answer | None:
    """One request, every second one streamed; None if it did not end well."""
    tier = TIERS[number % len(TIERS)]
    body = {"prompt": f"def function_{number}(values):\n", "max_tokens": 24, "tier": tier, "on_overload": "defer"}
    result.requests += 1
    if number % 2:
        result.streams += 1
        closing, text = await read_stream(client, body)
    else:
        response = await client.post("/generate", json=body)
        closing = response.json()
        text = closing.get("text", "")
    well = closing.get("finish_reason") in ("stop", "length") and closing["usage"]["completion_tokens"] > 0
    if not result.check(well and isinstance(text, str), f"request {number} ({tier}): {json.dumps(closing)[:300]}"):
        return None
    result.ok += 1
    decision = closing["decision"]
    tokens = closing["usage"]["completion_tokens"]
    return Answer(closing["request_id"], tokens, decision["prefill_worker"] != decision["decode_worker"])


async def read_stream(
    client: httpx.AsyncClient, body: dict[str, Any], first_token: asyncio.Event | None = None
) -> tuple[dict[str, Any], str]:
    """The last event's data (empty if the stream broke off) and the text."""
    text = ""
    async with client.stream("POST", "/generate", json=body | {"stream": True}) as response:
        lines: list[str] = []
        async for line in response.aiter_lines():
            lines.append(line)
            if line:
                continue
            for name, data in events(iter(lines)):
                if name == "token":
                    text += data["text"]
                    if first_token is not None:
                        first_token.set()
                elif name in ("done", "error"):
                    return data, text
            lines.clear()
    return {}, text


async def check_traces(traces: "Traces", answers: Sequence[Answer], result: Result) -> None:
    """Every request has its spans, in one trace."""
    deadline = time.monotonic() + SPANS_TIMEOUT_S
    missing: dict[str, frozenset[str]] = {}
    while time.monotonic() < deadline:
        names = await traces.names()
        missing = {
            answer.request_id: lacking
            for answer in answers
            if (
                lacking := (ALWAYS | ({"kv.transfer"} if answer.handed_off else set()))
                - names.get(answer.request_id, set())
            )
        }
        if not missing:
            break
        await asyncio.sleep(1.0)
    result.spans_ok = len(answers) - len(missing)
    for request_id, lacking in list(missing.items())[:5]:
        result.check(False, f"trace of {request_id} lacks {sorted(lacking)}")


@dataclass(frozen=True, slots=True)
class Traces:
    """Spans, from the receiver or from Jaeger."""

    compose: Compose
    jaeger_url: str | None

    async def names(self) -> dict[str, set[str]]:
        """Span names of the trace of each request id."""
        spans = await self._jaeger() if self.jaeger_url else self._received()
        trace_of = {
            attributes["slo.request.id"]: trace for trace, _, attributes in spans if "slo.request.id" in attributes
        }
        by_trace: dict[str, set[str]] = {}
        for trace, name, _ in spans:
            by_trace.setdefault(trace, set()).add(name)
        return {request: by_trace[trace] for request, trace in trace_of.items()}

    def _received(self) -> list[tuple[str, str, dict[str, Any]]]:
        lines = self.compose.execute("jaeger", "cat", "/tmp/spans.jsonl").splitlines()  # noqa: S108 - in the container
        spans = [json.loads(line) for line in lines if line.endswith("}")]
        return [(span["trace_id"], span["name"], span["attributes"]) for span in spans]

    async def _jaeger(self) -> list[tuple[str, str, dict[str, Any]]]:
        async with httpx.AsyncClient(base_url=str(self.jaeger_url), timeout=30.0) as client:
            answer = await client.get("/api/traces", params={"service": "api", "limit": 1000, "lookback": "1h"})
        return [
            (span["traceID"], span["operationName"], {tag["key"]: tag["value"] for tag in span["tags"]})
            for trace in answer.json().get("data", [])
            for span in trace["spans"]
        ]


async def check_drain(client: httpx.AsyncClient, compose: Compose, result: Result) -> None:
    """``stop`` in the middle of an answer: the answer comes to its end, and no process had to be killed."""
    tokens = 512
    body = {"prompt": "import asyncio\n", "max_tokens": tokens, "tier": "batch", "ignore_eos": True}
    first_token = asyncio.Event()
    answer = asyncio.create_task(read_stream(client, body, first_token))
    await asyncio.wait({answer, asyncio.ensure_future(first_token.wait())}, return_when=asyncio.FIRST_COMPLETED)
    say("stopping in the middle of an answer")
    stopping = asyncio.create_task(asyncio.to_thread(compose.stop))
    closing: dict[str, Any] = {}
    try:
        closing, _ = await answer
    except httpx.HTTPError as error:
        closing = {"error": type(error).__name__}
    await stopping
    got = closing.get("usage", {}).get("completion_tokens")
    whole = result.check(got == tokens, f"the answer during the stop ended with {json.dumps(closing)[:300]}")
    failed = {name: code for name, code in compose.exit_codes().items() if code and "jaeger" not in name}
    result.drained = result.check(not failed, f"did not end well (137: killed): {failed}") and whole


def check_containers(compose: Compose, expected: Sequence[str], result: Result) -> None:
    """Nothing but the api and Jaeger's interface is published, and ours run without root on read-only systems."""
    result.published = compose.published()
    result.check(sorted(result.published) == sorted(expected), f"published: {result.published}, not {expected}")
    for name, container in compose.containers().items():
        if "redis" in name:
            continue
        result.check(container["HostConfig"]["ReadonlyRootfs"], f"{name}: root filesystem is writable")
        result.check(container["Config"]["User"] not in ("", "0", "root"), f"{name}: runs as root")


async def drive(compose: Compose, api: str, ui: str, jaeger: bool, count: int, result: Result) -> None:
    """Everything between start and clean-up."""
    async with httpx.AsyncClient(base_url=f"http://{api}", timeout=300.0, trust_env=False) as client:
        if not await wait_ready(client, compose, result):
            return
        check_containers(compose, (api, ui), result)
        say(f"sending {count} requests")
        sent = await asyncio.gather(*(send(client, number, result) for number in range(count)))
        answers = [answer for answer in sent if answer]
        result.handed_off = sum(answer.handed_off for answer in answers)
        result.check(result.handed_off > 0, "no request went from a prefill to a decode worker")
        await check_traces(Traces(compose, f"http://{ui}" if jaeger else None), answers, result)
        await check_drain(client, compose, result)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40, help="requests to send")
    parser.add_argument("--keep", action="store_true", help="leave containers for a look")
    chosen = parser.parse_args()
    result = Result()
    api, ui = (f"127.0.0.1:{free_port()}" for _ in range(2))
    os.environ |= {**ENVIRONMENT, "SLOS_PORT": api.split(":")[1], "SLOS_JAEGER_PORT": ui.split(":")[1]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            compose = Compose.find(Path(folder))
            jaeger = compose.has_jaeger()
            result.traces_in = "jaeger" if jaeger else "otlp_receiver"
            compose.copy_source()
            compose.override(receiver=not jaeger)
            try:
                say("building")
                compose.build()
                say("starting with two workers of each kind")
                compose.up(prefill_worker=2, decode_worker=2)
                asyncio.run(drive(compose, api, ui, jaeger, chosen.requests, result))
            finally:
                if result.failures or sys.exc_info()[0]:
                    say(compose.logs())
                if not chosen.keep:
                    compose.down()
        except (ComposeError, httpx.HTTPError, TimeoutError) as error:
            result.check(False, f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(result)))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
