import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.common.engine.stock import ALL_JOBS, STOCK, Reference, as_dict, json_tokens, run_python
from tests.common.engine.support import TARGET, Pool, SimulatedPool, VllmPool


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The repository's model, or one of its shape with random weights where it has not been trained yet."""
    if (TARGET / "model.safetensors").exists():
        return str(TARGET)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=[1, 7],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_pool(model: str) -> AsyncIterator[VllmPool]:
    pool = VllmPool(model)
    yield pool
    await pool.close()


@pytest_asyncio.fixture(loop_scope="session", params=["simulated", pytest.param("vllm", marks=pytest.mark.vllm)])
async def pool(request: pytest.FixtureRequest, vllm_pool: VllmPool) -> AsyncIterator[Pool]:
    """Either implementation, for the contract suite."""
    if request.param == "vllm":
        yield vllm_pool
        return
    pool = SimulatedPool()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reference(vllm_pool: VllmPool, model: str) -> Reference:
    """What stock vLLM answers: nothing of ours in it, one request at a time, whole prompts (see vllm_cpu_worker)."""
    await vllm_pool.make_room(1)
    return json_tokens(await run_python(STOCK, model, json.dumps([as_dict(job) for job in ALL_JOBS])))
