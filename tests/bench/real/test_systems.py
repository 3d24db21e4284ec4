from bench.real.ablation import LADDER, STOCK, setup
from bench.real.backends import Stock
from bench.real.chunks import Tried, best, met
from bench.real.load import Load
from bench.real.routing import make_router
from bench.real.servers import ServerOptions, command
from bench.real.systems import Setup
from common.messages import Slo
from common.settings import Settings
from tests.bench.real.server import EASY, item, serving


def test_a_stock_server_is_vllm_serve_with_only_what_must_be_equal_set() -> None:
    words = command(ServerOptions("m", chunk=512), 8123)
    assert words[1:3] == ["serve", "m"]
    assert words[words.index("--max-num-batched-tokens") + 1] == "512"
    assert "--kv-transfer-config" not in words
    assert not any("scheduler" in word for word in words)


def test_the_larger_of_equally_good_budgets_wins_a_sweep() -> None:
    assert best([Tried(64, 0.9), Tried(512, 0.95), Tried(256, 0.95), Tried(2048, 0.5)]) == 512


async def test_a_sweep_weighs_loads_alike_however_many_requests_they_have() -> None:
    """Else the heaviest, under which all budgets fail, would decide."""
    easy = Load([item()], [EASY], 1)
    hard = Load([item(0.01 * number, f"s{number}") for number in range(5)], [Slo(1e-3, None, 1e-3)] * 5, 1)
    async with serving() as (url, _):
        backend = Stock(make_router("round-robin", [url]), "m", [url])
        assert await met([easy, hard], backend) == 0.5
        assert await met([easy, easy, hard, hard], backend) == 0.5


def test_every_step_of_the_ladder_uses_settings_that_the_product_has(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for step, environment in LADDER.items():
        for name, value in (environment or {}).items():
            assert name.removeprefix("SLOS_").lower() in Settings.model_fields, step
            monkeypatch.setenv(name, value)
        Settings()


def test_the_ladder_begins_with_stock_servers() -> None:
    assert setup("m", LADDER[STOCK]) == Setup("vllm", "m")
    assert next(iter(LADDER)) == STOCK


def test_systems_that_are_started_differently_log_to_different_folders() -> None:
    setups = [
        Setup("vllm", "m"), Setup("vllm", "m", 512), Setup("vllm", "m", routing="least-loaded"), Setup("ours", "m"),
        *(setup("m", environment) for environment in LADDER.values() if environment),
    ]  # fmt: skip
    assert len({one.folder for one in setups}) == len(setups)
