import shlex
from pathlib import Path

import pytest

from common.cli.engines import Machine, engine_environment
from common.cli.processes import MODULES, STAGES, Plan, free_port, is_free, pipeline
from common.cli.supervisor import Child
from common.redis_server import socket_in
from common.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
TWO_CPUS = Machine(cpus=2, gpus=0)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMP_NUM_THREADS",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)


def children(tmp_path: Path, plan: Plan | None = None, settings: Settings | None = None) -> list[Child]:
    return list(pipeline(plan or Plan(), settings or Settings(), TWO_CPUS, tmp_path)[0])


def child(tmp_path: Path, name: str, settings: Settings | None = None) -> Child:
    (found,) = (child for child in children(tmp_path, settings=settings) if child.name == name)
    return found


def test_every_kind_of_process_is_started_once_by_default(tmp_path: Path) -> None:
    assert [child.name for child in children(tmp_path)] == list(STAGES)


def test_the_procfile_names_the_same_processes() -> None:
    lines = [line for line in (ROOT / "Procfile").read_text().splitlines() if not line.startswith("#")]
    commands = {name: shlex.split(command) for name, _, command in (line.partition(": ") for line in lines)}
    redis = commands.pop("redis")
    assert redis[0] == "redis-server"
    assert {name: tuple(command) for name, command in commands.items()} == {
        name: ("python", "-m", *module) for name, module in MODULES.items()
    }


def test_workers_are_numbered_and_drain_before_redis_but_after_the_api(tmp_path: Path) -> None:
    found = {child.name: child for child in children(tmp_path, Plan(prefill=2, decode=3))}
    assert {"prefill_worker.1", "prefill_worker.2", "decode_worker.3"} < found.keys()
    assert found["redis"].stage < found["decode_worker.1"].stage < found["api"].stage < found["celery_worker"].stage


def test_everybody_uses_the_redis_that_was_started(tmp_path: Path) -> None:
    found, url = pipeline(Plan(redis_port=7001), Settings(), TWO_CPUS, tmp_path)
    socket = socket_in(tmp_path / "redis")
    assert url == "redis://127.0.0.1:7001/0"
    assert {child.env["SLOS_REDIS_URL"] for child in found if child.name != "redis"} == {url}
    assert {child.env["SLOS_REDIS_SOCKET"] for child in found if child.name != "redis"} == {str(socket)}
    argv = next(child.argv for child in found if child.name == "redis")
    assert argv[argv.index("--unixsocket") + 1] == str(socket)


def test_the_started_redis_is_durable_and_never_evicts(tmp_path: Path) -> None:
    argv = " ".join(child(tmp_path, "redis").argv)
    assert "--appendonly yes --appendfsync everysec" in argv
    assert "--maxmemory-policy noeviction" in argv
    assert "--bind 127.0.0.1" in argv


def test_a_given_redis_is_used_and_none_is_started(tmp_path: Path) -> None:
    found, url = pipeline(Plan(redis_url="redis://elsewhere:1/0"), Settings(), TWO_CPUS, tmp_path)
    assert not any("SLOS_REDIS_SOCKET" in child.env for child in found)
    assert url == "redis://elsewhere:1/0"
    assert "redis" not in [child.name for child in found]


def test_celery_can_be_left_out(tmp_path: Path) -> None:
    assert not [found for found in children(tmp_path, Plan(celery=False)) if "celery" in found.name]


@pytest.mark.parametrize("name", ["prefill_worker", "decode_worker", "api", "celery_worker"])
def test_a_child_s_grace_is_longer_than_its_drain(tmp_path: Path, name: str) -> None:
    settings = Settings(drain_s=300.0, shutdown_s=200.0, batch_slice_s=100.0)
    own = {"api": 200.0, "celery_worker": 100.0}.get(name, 300.0)
    assert child(tmp_path, name, settings).grace_s > own


def test_two_engines_on_two_cpus_get_one_thread_each_and_stay_in_one_process(tmp_path: Path) -> None:
    env = child(tmp_path, "prefill_worker").env
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_engines_share_the_cpus_of_a_larger_machine() -> None:
    assert engine_environment(0, 2, Machine(17, 0), Settings())["OMP_NUM_THREADS"] == "8"


def test_each_cpu_engine_gets_cpus_of_its_own_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(cpus=4, gpus=0, cpu_ids=(1, 2, 5, 7))

    def cpus(index: int, engines: int, threads: int | None = None) -> str | None:
        return engine_environment(index, engines, machine, Settings(), threads).get("SLOS_ENGINE_CPUS")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [cpus(n, 2, 2) for n in range(2)] == ["1,2", "5,7"]
    assert [cpus(n, 4) for n in range(4)] == ["1", "2", "5", "7"]
    assert cpus(0, 5) is None
    assert cpus(0, 2, 3) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cpus(1, 2) == "5,7"
    monkeypatch.setenv("SLOS_ENGINE_CPUS", "3")
    assert cpus(1, 2) is None  # the user's stays


def test_what_the_user_has_set_for_vllm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in engine_environment(0, 2, TWO_CPUS, Settings())
    assert engine_environment(0, 2, TWO_CPUS, Settings(), threads=3)["OMP_NUM_THREADS"] == "3"


def test_each_engine_gets_a_gpu_of_its_own() -> None:
    machine = Machine(cpus=16, gpus=2)
    assert [engine_environment(n, 2, machine, Settings())["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["0", "1"]


def test_engines_that_share_a_gpu_share_its_memory() -> None:
    env = engine_environment(1, 2, Machine(cpus=16, gpus=1), Settings(gpu_memory_utilization=0.9))
    assert env["CUDA_VISIBLE_DEVICES"] == "0"
    assert env["SLOS_GPU_MEMORY_UTILIZATION"] == "0.450"


def test_tensor_parallel_engines_get_as_many_gpus_as_they_need() -> None:
    settings, machine = Settings(tensor_parallel_size=2), Machine(cpus=16, gpus=4)
    assert [engine_environment(n, 2, machine, settings)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["0,1", "2,3"]


def test_relative_paths_of_the_user_still_hold_where_the_children_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    assert child(tmp_path, "api", Settings(model="my-model")).env["SLOS_MODEL"] == str(tmp_path / "my-model")


def test_the_default_model_is_left_to_be_found_in_the_checkout(tmp_path: Path) -> None:
    assert "SLOS_MODEL" not in child(tmp_path, "api").env


def test_a_port_that_was_found_is_free() -> None:
    assert is_free("127.0.0.1", free_port())
