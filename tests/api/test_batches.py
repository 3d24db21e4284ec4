import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import openai
import pytest
from pydantic import SecretStr

from common.bus.redis import RedisBus
from common.keys import Keys
from common.offline.endpoint import OpenAIEndpoint
from common.offline.run import Tools
from common.offline.runner import run_slice
from common.settings import Settings
from tests.api.conftest import Api, Serve
from tests.common.offline.offline import CHAT, COMPLETIONS, Stores, make_input, open_stores
from tests.pipeline import running_pipeline


@dataclass(frozen=True)
class Served:
    """An api, its stores, and what a Celery worker would have."""

    api: Api
    stores: Stores

    def client(self, key: str = "key-a") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.api.url}/v1", api_key=key, max_retries=0)

    async def work(self, batch_id: str) -> None:
        """As the queue's worker does."""
        endpoint = OpenAIEndpoint(self.api.context, "batch")
        async with RedisBus.connect(self.stores.settings) as bus, running_pipeline(bus):
            tools = Tools(self.stores.batches, self.stores.files, bus, endpoint, self.stores.settings)
            async with asyncio.timeout(30):
                while await run_slice(batch_id, tools):
                    pass

    async def queued(self) -> int:
        return int(await self.stores.redis.llen(Keys().celery + "batches"))


@pytest.fixture
async def served(serve: Serve, redis_url: str) -> AsyncIterator[Served]:
    async with serve(redis_url=redis_url, api_keys=SecretStr("ada=key-a,bob=key-b")) as api:
        stores = open_stores(Settings(redis_url=redis_url))
        yield Served(api, stores)
        await stores.redis.aclose()


@pytest.fixture
async def ada(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with served.client() as client:
        yield client


async def uploaded(client: openai.AsyncOpenAI, content: bytes) -> str:
    return (await client.files.create(file=("in.jsonl", content), purpose="batch")).id


async def started(client: openai.AsyncOpenAI, content: bytes = b"{}") -> openai.types.Batch:
    file_id = await uploaded(client, content)
    return await client.batches.create(input_file_id=file_id, endpoint=COMPLETIONS, completion_window="24h")


async def test_the_official_client_runs_a_batch_of_chats_from_upload_to_results(
    served: Served, ada: openai.AsyncOpenAI
) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "ignore_eos": True}
    file_id = await uploaded(ada, make_input(body, {"messages": []}, body, endpoint=CHAT))
    batch = await ada.batches.create(
        input_file_id=file_id, endpoint=CHAT, completion_window="24h", metadata={"night": "1"}
    )
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"night": "1"})
    assert batch.expires_at == batch.created_at + 86400
    assert await served.queued() == 1
    await served.work(batch.id)
    batch = await ada.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.completed_at
    assert batch.output_file_id
    assert batch.error_file_id
    output = [json.loads(line) for line in (await ada.files.content(batch.output_file_id)).text.splitlines()]
    assert [entry["custom_id"] for entry in output] == ["line-1", "line-3"]
    answer = openai.types.chat.ChatCompletion.model_validate(output[0]["response"]["body"])
    assert answer.choices[0].finish_reason == "length"
    errors = [json.loads(line) for line in (await ada.files.content(batch.error_file_id)).text.splitlines()]
    assert [(entry["custom_id"], entry["response"]["status_code"]) for entry in errors] == [("line-2", 422)]
    assert (await ada.files.retrieve(batch.output_file_id)).purpose == "batch_output"


async def test_a_batch_that_can_not_run_says_why(served: Served, ada: openai.AsyncOpenAI) -> None:
    batch = await started(ada, b"\n")
    await served.work(batch.id)
    batch = await ada.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "empty_file"


async def test_a_cancelled_batch_ends_and_can_not_be_cancelled_after_its_end(
    served: Served, ada: openai.AsyncOpenAI
) -> None:
    batch = await started(ada, make_input({"prompt": "x"}))
    assert (await ada.batches.cancel(batch.id)).status == "cancelling"
    assert (await ada.batches.cancel(batch.id)).status == "cancelling"
    await served.work(batch.id)
    assert (await ada.batches.cancel(batch.id)).status == "cancelled"
    done = await started(ada, b"\n")
    await served.work(done.id)
    with pytest.raises(openai.ConflictError) as caught:
        await ada.batches.cancel(done.id)
    assert caught.value.code == "batch_not_cancellable"


async def test_pages_are_followed_by_the_official_client(ada: openai.AsyncOpenAI) -> None:
    made = [(await started(ada)).id for _ in range(3)]
    assert [batch.id async for batch in ada.batches.list(limit=2)] == made[::-1]


async def test_another_tenant_sees_nothing_of_a_batch_or_its_input(served: Served, ada: openai.AsyncOpenAI) -> None:
    batch = await started(ada)
    async with served.client("key-b") as bob:
        assert [found.id async for found in bob.batches.list()] == []
        for call in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(batch.id)
        with pytest.raises(openai.NotFoundError):
            await bob.batches.create(input_file_id=batch.input_file_id, endpoint=COMPLETIONS, completion_window="24h")


async def test_a_file_that_a_batch_reads_can_not_be_deleted_until_its_end(
    served: Served, ada: openai.AsyncOpenAI
) -> None:
    batch = await started(ada, b"\n")
    with pytest.raises(openai.ConflictError):
        await ada.files.delete(batch.input_file_id)
    await served.work(batch.id)
    assert (await ada.files.delete(batch.input_file_id)).deleted


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"other": 1}, "other"),
    ],
)
async def test_a_wrong_batch_is_refused_naming_the_field(
    served: Served, ada: openai.AsyncOpenAI, changes: dict[str, object], field: str
) -> None:
    file_id = await uploaded(ada, b"{}")
    body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"} | changes
    response = await served.api.client.post("/v1/batches", json=body, headers={"authorization": "Bearer key-a"})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert await served.queued() == 0


async def test_a_file_that_is_not_there_is_not_found(ada: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await ada.batches.create(input_file_id="file-x", endpoint=COMPLETIONS, completion_window="24h")
    assert caught.value.code == "file_not_found"
