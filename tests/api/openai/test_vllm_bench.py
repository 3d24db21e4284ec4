"""``vllm bench serve`` against the api: its own request functions, as both backends call them."""

import pytest

from tests.api.conftest import Serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]


@pytest.mark.parametrize(("backend", "path"), [("openai", "completions"), ("openai-chat", "chat/completions")])
@pytest.mark.filterwarnings("ignore")
async def test_the_benchmark_reads_every_token(serve: Serve, backend: str, path: str) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    functions = pytest.importorskip("vllm.benchmarks.lib.endpoint_request_func")
    async with serve(script=lambda work: [[40 + index] for index in range(8)]) as api, aiohttp.ClientSession() as http:
        sent = functions.RequestFuncInput(
            prompt="def add(a, b):",
            api_url=f"{api.url}/v1/{path}",
            prompt_len=5,
            output_len=8,
            model="target",
            ignore_eos=True,
            extra_body={"temperature": 0},
        )
        output = await functions.ASYNC_REQUEST_FUNCS[backend](sent, http)
        assert output.success, output.error
        assert output.output_tokens == 8
        assert len(output.itl) == 7
        assert output.generated_text == api.context.tokenizer.decode([40 + index for index in range(8)])
        assert output.prompt_len == len(api.pipeline.works[0].request.prompt)
