import asyncio
import signal
import socket
from collections.abc import Mapping

import httpx
import pytest

from common.health import HealthServer


async def get(server: HealthServer, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"{server.url}{path}")


def ready() -> Mapping[str, bool]:
    return {"engine": True}


async def test_a_live_process_answers_healthz_on_a_free_port() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as server:
        answer = await get(server, "/healthz")
        assert server.port > 0
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_two_servers_with_port_zero_get_different_ports() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as one, HealthServer("127.0.0.1", 0, ready) as other:
        assert one.port != other.port


async def test_readyz_is_200_when_all_checks_hold() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as server:
        answer = await get(server, "/readyz")
        assert (answer.status_code, answer.json()) == (200, {"ready": True, "checks": {"engine": True}})


async def test_readyz_is_503_and_names_the_check_that_failed() -> None:
    async def checks() -> Mapping[str, bool]:
        return {"engine": True, "redis": False}

    async with HealthServer("127.0.0.1", 0, checks) as server:
        answer = await get(server, "/readyz")
        assert (answer.status_code, answer.json()) == (
            503,
            {"ready": False, "checks": {"engine": True, "redis": False}},
        )


async def test_readyz_is_503_when_a_check_raises() -> None:
    def checks() -> Mapping[str, bool]:
        raise RuntimeError("secret detail")

    async with HealthServer("127.0.0.1", 0, checks) as server:
        answer = await get(server, "/readyz")
        assert answer.status_code == 503
        assert "secret" not in answer.text


async def test_readyz_is_503_when_a_check_hangs_and_healthz_still_answers() -> None:
    async def checks() -> Mapping[str, bool]:
        await asyncio.Event().wait()
        return {}

    async with HealthServer("127.0.0.1", 0, checks, check_timeout_s=0.1) as server:
        hanging = asyncio.create_task(get(server, "/readyz"))
        assert (await get(server, "/healthz")).status_code == 200
        assert (await hanging).status_code == 503


async def test_metrics_are_prometheus_text() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as server:
        answer = await get(server, "/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert answer.headers["content-type"].count("charset") == 1
        assert "slos_queue_depth" in answer.text


async def test_an_unknown_path_is_404() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as server:
        assert (await get(server, "/prompts")).status_code == 404


async def test_a_stopped_server_frees_its_port() -> None:
    server = HealthServer("127.0.0.1", 0, ready)
    await server.start()
    await server.stop()
    await server.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


async def test_a_server_that_never_started_can_be_stopped() -> None:
    await HealthServer("127.0.0.1", 0, ready).stop()


async def test_a_taken_port_is_an_error() -> None:
    async with HealthServer("127.0.0.1", 0, ready) as server:
        with pytest.raises(OSError, match="in use"):
            await HealthServer("127.0.0.1", server.port, ready).start()


async def test_the_server_leaves_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with HealthServer("127.0.0.1", 0, ready):
        assert signal.getsignal(signal.SIGTERM) is before
