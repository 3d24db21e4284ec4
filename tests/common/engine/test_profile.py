import asyncio
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.engine.clock import VirtualClock
from common.engine.interface import Facts
from common.engine.profile import Measured, evaluate, load_profile, measure, obtain, profile_path, save
from common.engine.simulated import SimulatedEngine
from common.errors import ProfileError
from common.latency_model import Batch, LatencyModel, Piece
from common.settings import Settings

SLOW = LatencyModel((Piece(3e-4, 0.0, 0.012),), k_seq=5e-4, k_kv=4e-6, k_attn=3e-8)


def make_settings(folder: Path) -> Settings:
    return Settings(model="none", engine="simulated", profile_dir=folder)


async def start(settings: Settings) -> tuple[SimulatedEngine, Facts]:
    engine = SimulatedEngine(settings, latency=SLOW, clock=VirtualClock())
    return engine, await engine.start()


async def test_measuring_finds_the_engines_latency_model(tmp_path: Path) -> None:
    engine, facts = await start(make_settings(tmp_path))
    ticks: list[float] = []
    measured = await measure(engine, facts, ticks.append)
    await engine.close()
    assert measured.r2 > 0.999
    assert measured.mape < 0.001
    for batch in (Batch(1, 1, 500), Batch(32, 32, 8000), Batch(2048, 1, 0, 2048 * 1024), Batch(100, 3, 0, 5000)):
        assert measured.latency.seconds(batch) == pytest.approx(SLOW.seconds(batch), rel=0.001)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1


async def test_a_profile_is_measured_once_and_then_loaded(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    engine, facts = await start(settings)
    first = await obtain(engine, settings, facts)
    ticks: list[float] = []
    assert await obtain(engine, settings, facts, ticks.append) == first
    assert ticks == []
    await engine.close()


@pytest.mark.parametrize("factor", [0.3, 4.0])
async def test_a_profile_of_a_slower_or_faster_machine_is_warned_of_and_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    settings = make_settings(tmp_path)
    engine, facts = await start(settings)
    (piece,) = SLOW.pieces
    other = LatencyModel((Piece(piece.k_token * factor, 0.0, piece.base * factor),), SLOW.k_seq * factor)
    save(settings, facts, Measured(other, 1.0, 0.0, 1))
    found = await obtain(engine, settings, facts)
    await engine.close()
    assert found.seconds(Batch(32, 32, 8000)) == pytest.approx(SLOW.seconds(Batch(32, 32, 8000)), rel=0.001)
    assert load_profile(settings, facts) == found
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "does not fit this machine" in warning.getMessage()


async def test_two_workers_of_a_host_measure_one_after_the_other(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    engines = [await start(settings) for _ in range(2)]
    ticks: list[float] = []
    one, other = await asyncio.gather(*(obtain(engine, settings, facts, ticks.append) for engine, facts in engines))
    assert one == other
    assert ticks.count(1.0) == 1
    for engine, _ in engines:
        await engine.close()


async def saved(settings: Settings) -> tuple[Facts, Path]:
    engine, facts = await start(settings)
    await engine.close()
    return facts, save(settings, facts, Measured(SLOW, 1.0, 0.0, 1))


async def test_a_saved_profile_is_loaded_as_it_was(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    facts, path = await saved(settings)
    assert path == profile_path(settings, facts)
    assert load_profile(settings, facts) == SLOW


async def test_each_kind_of_machine_has_a_profile_of_its_own_whatever_its_hosts_are_called(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    facts, path = await saved(settings)
    assert platform.node() not in path.name
    assert profile_path(settings, replace(facts, machine="NVIDIA H200")) != path


async def test_no_profile_is_a_hidden_file(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    facts, _ = await saved(settings)
    assert profile_path(settings, replace(facts, model=".cache/models/small")).name.startswith("cache_models_small-")


@pytest.mark.parametrize(
    "changes",
    [
        {
            "latency": {
                "pieces": [{"k_token": float("nan"), "k_draft": 0, "base": 0}],
                "k_seq": 0,
                "k_kv": 0,
                "k_attn": 0,
            }
        },
        {"latency": {"pieces": [{"k_token": 1e-4, "k_draft": 0, "base": 0}], "k_seq": -1, "k_kv": 0, "k_attn": 0}},
        {"latency": {"pieces": [{"k_token": 1e-4}], "k_seq": 0, "k_kv": 0, "k_attn": 0}},
        {"latency": {"pieces": [], "k_seq": 0, "k_kv": 0, "k_attn": 0}},
        {"latency": {"pieces": [{"k_token": "x", "k_draft": 0, "base": 0}], "k_seq": 0, "k_kv": 0, "k_attn": 0}},
        {"latency": [1, 2]},
        {"machine": "another"},
        {"fingerprint": "another"},
        {"format": 99},
    ],
    ids=["nan", "negative", "missing", "empty", "text", "list", "machine", "fingerprint", "format"],
)
async def test_a_profile_that_can_not_be_used_is_a_profile_error(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = make_settings(tmp_path)
    facts, path = await saved(settings)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ProfileError):
        load_profile(settings, facts)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", "x" * (1 << 21)])
async def test_a_file_that_is_no_profile_is_warned_of_and_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    settings = make_settings(tmp_path)
    facts, path = await saved(settings)
    path.write_text(text)
    with pytest.raises(ProfileError):
        load_profile(settings, facts)
    engine, facts = await start(settings)
    await obtain(engine, settings, facts)
    await engine.close()
    load_profile(settings, facts)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_missing_profile_is_a_profile_error(tmp_path: Path) -> None:
    engine, facts = await start(make_settings(tmp_path))
    with pytest.raises(ProfileError):
        load_profile(make_settings(tmp_path), facts)
    await engine.close()


def test_without_samples_nothing_is_measured() -> None:
    with pytest.raises(ProfileError):
        evaluate(SLOW, [])


SMALL = {
    "SLOS_KV_CACHE_GIB": "0.25",
    "SLOS_MAX_NUM_BATCHED_TOKENS": "512",
    "SLOS_MAX_MODEL_LEN": "1024",
    "SLOS_MAX_NUM_SEQS": "16",
}
"""A smaller grid of batches than the default: whether it measures, not how well."""


async def run_command(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "common.engine.profile",
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_command_explains_itself() -> None:
    code, output = await run_command("--help")
    assert code == 0
    assert "SLOS_" in output


@pytest.mark.vllm
@pytest.mark.timeout(180)
async def test_the_command_measures_the_real_engine_and_ends_with_one_json_object(tmp_path: Path, model: str) -> None:
    code, output = await run_command("--model", model, SLOS_PROFILE_DIR=str(tmp_path), **SMALL)
    assert code == 0
    result = json.loads(output.splitlines()[-1])
    assert result["samples"] > 50
    assert result["r2"] <= 1
    assert result["mape"] >= 0
    assert max(piece["k_token"] for piece in result["pieces"]) > 0
    assert result["path"].startswith(str(tmp_path))
