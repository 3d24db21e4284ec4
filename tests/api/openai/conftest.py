from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.api.conftest import Api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[AsyncOpenAI]:
    """The official client, unchanged."""
    async with connect(api) as client:
        yield client


def connect(api: Api, key: str = "none") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)
