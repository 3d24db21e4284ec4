"""``slos-serve generate``: one request from the terminal."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import httpx
import typer

from common.cli.connection import target
from common.cli.console import checked_settings, err, fail

READ_TIMEOUT_S = 600.0


def generate(
    prompt: Annotated[str, typer.Argument(help="text; - reads standard input")],
    tier: Annotated[str | None, typer.Option(help="named SLO  [default: the server's]")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest output")] = 128,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: greedy")] = None,
    ttft_ms: Annotated[float | None, typer.Option(min=0, help="explicit SLO: time to first token")] = None,
    tpot_ms: Annotated[float | None, typer.Option(min=0, help="explicit SLO: time per output token")] = None,
    stream: Annotated[bool, typer.Option(help="print tokens as they come")] = True,
    url: Annotated[str | None, typer.Option(help="the api  [default: the running one's]")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="SLOS_API_KEY", help="if the server wants one")] = None,
) -> None:
    """Send one request; the text goes to standard output, decision and latency to standard error."""
    body: dict[str, Any] = {"prompt": sys.stdin.read() if prompt == "-" else prompt, "max_tokens": max_tokens}
    body |= {"stream": stream} | ({} if tier is None else {"tier": tier})
    body |= {} if temperature is None else {"temperature": temperature}
    if (ttft_ms is None) != (tpot_ms is None):
        fail("an explicit SLO needs both --ttft-ms and --tpot-ms", 2)
    if ttft_ms is not None:
        body["slo"] = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms}
    where = target(checked_settings(), url).url
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(timeout=httpx.Timeout(10.0, read=READ_TIMEOUT_S), headers=headers) as client:
            _send(client, where, body)
    except httpx.ConnectError:
        fail(f"nothing answers at {where}; start a pipeline with: slos-serve up")
    except httpx.HTTPError as error:
        fail(f"{where}: {type(error).__name__}: {error}")


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    name, data = "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line and data:
            yield name, json.loads(data)
            name, data = "message", ""


def _send(client: httpx.Client, url: str, body: Mapping[str, Any]) -> None:
    with client.stream("POST", f"{url}/generate", json=body) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            _print_events(events(response.iter_lines()))
            return
        response.read()
    answer = _json(response)
    if response.is_error:
        retry = response.headers.get("retry-after")
        fail(f"{response.status_code}: {_problem(answer)}" + (f" Try again in {retry} s." if retry else ""))
    typer.echo(answer["text"])
    _print_closing(answer)


def _print_events(stream: Iterator[tuple[str, Any]]) -> None:
    for name, data in stream:
        if name == "token":
            sys.stdout.write(data["text"])
            sys.stdout.flush()
        elif name == "done":
            sys.stdout.write("\n")
            _print_closing(data)
            return
        elif name == "error":
            sys.stdout.write("\n")
            fail(_problem(data))
    fail("the stream ended before the answer did")


def _print_closing(answer: Mapping[str, Any]) -> None:
    decision, slo, usage = answer["decision"] or {}, answer["slo"], answer["usage"]
    promised, got = slo["objective"], slo["achieved"]
    kept = {True: "promise kept", False: "promise missed", None: "no promise"}[slo["attained"]]
    kept = kept if decision.get("verdict") == "admitted" else "no promise"
    place = " -> ".join(filter(None, dict.fromkeys((decision.get("prefill_worker"), decision.get("decode_worker")))))
    lines = (
        f"{decision.get('verdict')} ({decision.get('reason')}) on {place or 'no worker'}",
        f"TTFT {_ms(got['ttft_ms'])} of {_ms(promised['ttft_ms'])}, TPOT {_ms(got['tpot_ms'])} of"
        f" {_ms(promised['tpot_ms'])}, {kept}; {usage['prompt_tokens']} + {usage['completion_tokens']}"
        f" tokens, {answer['finish_reason']}",
    )
    err.print("\n".join(lines), style="dim", markup=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _problem(body: Mapping[str, Any]) -> str:
    errors = "; ".join(f"{item['field']}: {item['message']}" for item in body.get("errors", ()))
    return str(body.get("detail", body)) + (f" {errors}" if errors else "")


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        fail(f"{response.status_code}: the answer is not JSON: {response.text[:200]}")
