"""Start the whole pipeline on real vLLM, send 60 requests in every way there is, and check all that came back.

``python -m bench.smoke`` prints one JSON object as its last line and exits with 0 only if everything held:
every request answered, 20 greedy answers through prefill and decode equal to a plain vLLM engine's, a complete
trace for each request, and the relay's overhead below 5 ms at the median with 16 streams.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console

from bench import ending
from bench.cluster import Cluster, start_pipeline
from bench.plain_engine import PlainJob, truth
from bench.tiny_model import TARGET
from common.telemetry import names
from common.tiers import load_tiers
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

MODEL = str(TARGET)
EACH = 20
OUTPUT_TOKENS = 32
STREAMS = 16
MAX_RELAY_MS = 5.0
PROMPT = "import asyncio\n\n\ndef main(arguments):\n"
console = Console(stderr=True)


@dataclass
class Seen:
    """What the client saw of all requests."""

    ids: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    equal: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    relay_ms: list[float] = field(default_factory=list)
    transfer_ms: list[float] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Note a failure, and go on."""
        self.failures.append(what)
        console.print(f"[red]failed:[/] {what}")


async def send_plain(
    client: httpx.AsyncClient, prompts: Sequence[list[int]], answers: Sequence[list[int]], seen: Seen
) -> None:
    """Greedy prompts through ``/generate``, compared with the plain engine's answers."""
    tiers = load_tiers().names
    for number, (prompt, expected) in enumerate(zip(prompts, answers, strict=True)):
        body = {"prompt_token_ids": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}
        response = await client.post("/generate", json={**body, "tier": tiers[number % len(tiers)]})
        if response.status_code != 200:
            seen.fail(f"/generate answered {response.status_code}: {response.text[:200]}")
            continue
        answer = response.json()
        seen.ids.append(answer["request_id"])
        decision = answer["decision"]
        if answer["token_ids"] == expected and decision["prefill_worker"] != decision["decode_worker"]:
            seen.equal += 1
        else:
            seen.fail(f"a prompt of {len(prompt)} tokens was answered differently than by one engine")


async def send_streams(client: httpx.AsyncClient, seen: Seen) -> None:
    """Streams through ``/generate``, ``STREAMS`` at a time."""
    gate = asyncio.Semaphore(STREAMS)
    tiers = load_tiers().names

    async def one(number: int) -> None:
        async with gate:
            await stream_one(client, {"tier": tiers[number % len(tiers)]}, seen)

    await asyncio.gather(*(one(number) for number in range(EACH)))


async def stream_one(client: httpx.AsyncClient, extra: dict[str, Any], seen: Seen) -> None:
    """One stream, timed token by token."""
    body = {"prompt": PROMPT, "max_tokens": 64, "stream": True, "temperature": 0.7, "ignore_eos": True, **extra}
    sent_s, name, times = time.time(), "", []
    async with client.stream("POST", "/generate", json=body) as response:
        if response.status_code != 200:
            seen.fail(f"a stream was answered {response.status_code}")
            return
        async for line in response.aiter_lines():
            now_s = time.time()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if name == "token":
                    times += [now_s] * len(data["token_ids"])
                    seen.relay_ms.append((now_s - data["time_s"]) * 1e3)
                elif name == "done":
                    seen.ids.append(data["request_id"])
    if name != "done" or len(times) != 64:
        seen.fail(f"a stream ended with {name!r} after {len(times)} tokens")
        return
    seen.ttft_ms.append((times[0] - sent_s) * 1e3)
    seen.tpot_ms.append((times[-1] - times[0]) / (len(times) - 1) * 1e3)


async def send_openai(url: str, model: str, seen: Seen) -> None:
    """Completions and chats by the official client, streamed and not."""
    tiers = load_tiers().names
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for number in range(EACH):
            common: dict[str, Any] = {
                "model": model,
                "max_tokens": OUTPUT_TOKENS,
                "stream": number % 2 == 1,
                "extra_headers": {"X-SLO-Tier": tiers[number % len(tiers)]},
                "extra_body": {"ignore_eos": True},
            }
            if number < EACH // 2:
                raw: Any = await client.completions.with_raw_response.create(prompt=PROMPT, **common)
            else:
                messages: Any = [{"role": "user", "content": "What does os.path.join do?"}]
                raw = await client.chat.completions.with_raw_response.create(messages=messages, **common)
            parsed = raw.parse()
            chunks = [chunk async for chunk in parsed] if common["stream"] else [parsed]
            seen.ids.append(raw.headers["x-request-id"])
            if chunks[-1].choices[0].finish_reason != "length":
                seen.fail(f"openai request {number} ended with {chunks[-1].choices[0].finish_reason!r}")


async def read_transfers(client: httpx.AsyncClient, seen: Seen) -> None:
    """KV transfer times from the requests' records."""
    for request_id in seen.ids:
        timings = (await client.get(f"/requests/{request_id}")).json()["timings"]
        if "kv_transfer_ms" in timings:
            seen.transfer_ms.append(timings["kv_transfer_ms"])


def complete_traces(spans: Sequence[ReceivedSpan], ids: Sequence[str]) -> int:
    """How many of the requests have one whole trace: a root, all stages, no orphan."""
    return sum(_complete(spans, request_id) for request_id in ids)


def _complete(spans: Sequence[ReceivedSpan], request_id: str) -> bool:
    traces = {span.trace_id for span in spans if span.attributes.get(names.REQUEST_ID) == request_id}
    mine = [span for span in spans if span.trace_id in traces]
    known = {span.span_id for span in mine}
    stages = {span.name for span in mine}
    return (
        len(traces) == 1
        and {"admission", "prefill", "kv.transfer", "decode"} <= stages
        and any(name.startswith("send requests.") for name in stages)
        and [span.name.split()[0] for span in mine if span.parent_id is None] == ["POST"]
        and all(span.parent_id in known for span in mine if span.parent_id is not None)
    )


async def run(folder: Path, receiver: OtlpReceiver) -> dict[str, Any]:
    """The whole smoke test; returns its figures."""
    draw = random.Random(1)
    prompts = [[draw.randrange(16, 2048) for _ in range(draw.randint(5, 600))] for _ in range(EACH)]
    console.print("asking one plain vLLM engine ...")
    answers = await asyncio.to_thread(_ignoring_eos, prompts, folder / "truth.json")
    seen = Seen()
    environment = {
        "SLOS_MODEL": MODEL,
        "SLOS_TPOT_SCALE": "4",
        "SLOS_ELASTIC": "false",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
    }
    with Cluster(folder, environment) as cluster:
        console.print("starting the pipeline ...")
        start_pipeline(cluster)
        await cluster.ready()
        async with httpx.AsyncClient(base_url=cluster.url, timeout=120.0) as client:
            console.print("sending 60 requests ...")
            await send_plain(client, prompts, answers, seen)
            await send_streams(client, seen)
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
            await send_openai(cluster.url, model, seen)
            await read_transfers(client, seen)
            spans_ok = await _wait_for_spans(receiver, seen.ids)
    return figures(seen, spans_ok)


def _ignoring_eos(prompts: list[list[int]], out: Path) -> list[list[int]]:
    return truth(MODEL, [PlainJob(prompt, OUTPUT_TOKENS, ignore_eos=True) for prompt in prompts], out)


async def _wait_for_spans(receiver: OtlpReceiver, ids: Sequence[str]) -> int:
    for _ in range(100):
        found = complete_traces(list(receiver.spans), ids)
        if found == len(ids):
            break
        await asyncio.sleep(0.1)
    return found


def figures(seen: Seen, spans_ok: int) -> dict[str, Any]:
    """The JSON object of the last line."""
    return {
        "requests": 3 * EACH,
        "ok": len(seen.ids) if not seen.failures else min(len(seen.ids), 3 * EACH - len(seen.failures)),
        "pd_equal": seen.equal,
        "spans_ok": spans_ok,
        "ttft_ms_p50": _median(seen.ttft_ms),
        "tpot_ms_p50": _median(seen.tpot_ms),
        "relay_overhead_ms_p50": _median(seen.relay_ms),
        "kv_transfer_ms_p50": _median(seen.transfer_ms),
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether all of it is as promised."""
    relay_ms = result["relay_overhead_ms_p50"]
    return (
        result["ok"] == result["spans_ok"] == result["requests"]
        and result["pd_equal"] == EACH
        and relay_ms is not None
        and relay_ms < MAX_RELAY_MS
    )


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def main() -> None:
    """Run, print, and exit with 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for logs (default: a temporary one)")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder, OtlpReceiver() as receiver:
        result = ending.run(run(keep or Path(folder), receiver))
    print(json.dumps(result))
    sys.exit(0 if holds(result) else 1)


if __name__ == "__main__":
    main()
