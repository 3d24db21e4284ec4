import asyncio
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from pydantic import SecretStr

from api.upload import FORM_BYTES
from tests.api.conftest import Api, Serve

KEYS = {"api_keys": "ada=key-a,bob=key-b"}


@pytest.fixture
async def api(serve: Serve, redis_url: str) -> AsyncIterator[Api]:
    """Two tenants, small bounds."""
    options = {"redis_url": redis_url, "max_file_bytes": 300_000, "file_quota_bytes": 500_000}
    async with serve(**options, api_keys=SecretStr(KEYS["api_keys"])) as api:
        yield api


@pytest.fixture
async def ada(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="key-a", max_retries=0) as client:
        yield client


@pytest.fixture
async def bob(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="key-b", max_retries=0) as client:
        yield client


async def post(api: Api, **parts: object) -> httpx.Response:
    return await api.client.post("/v1/files", headers={"authorization": "Bearer key-a"}, **parts)  # type: ignore[arg-type]


async def test_the_official_client_uploads_reads_and_deletes_a_file(ada: openai.AsyncOpenAI) -> None:
    content = b"\x00\xff line\n" * 20_000
    file = await ada.files.create(file=("über.jsonl", content), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "über.jsonl", "batch")
    assert await ada.files.retrieve(file.id) == file
    assert (await ada.files.content(file.id)).content == content
    deleted = await ada.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        await ada.files.retrieve(file.id)


async def test_pages_are_followed_by_the_official_client(ada: openai.AsyncOpenAI) -> None:
    made = [(await ada.files.create(file=(str(n), b"x"), purpose="batch")).id for n in range(5)]
    assert [file.id async for file in ada.files.list(limit=2, order="asc")] == made
    assert [file.id async for file in ada.files.list(purpose="batch")] == made[::-1]
    assert [file.id async for file in ada.files.list(purpose="batch_output")] == []


async def test_another_tenant_sees_nothing_of_a_file(ada: openai.AsyncOpenAI, bob: openai.AsyncOpenAI) -> None:
    file = await ada.files.create(file=("a", b"secret"), purpose="batch")
    assert [found.id async for found in bob.files.list()] == []
    for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            await call(file.id)
        assert caught.value.code == "file_not_found"
    assert (await ada.files.content(file.id)).content == b"secret"


async def test_without_a_key_nothing_is_served(api: Api) -> None:
    response = await api.client.get("/v1/files")
    assert response.status_code == 401


async def test_a_file_over_the_bound_is_refused_with_the_bound_and_leaves_nothing(api: Api) -> None:
    response = await post(api, files={"file": ("a", b"x" * 300_001)}, data={"purpose": "batch"})
    assert response.status_code == 413
    assert response.json()["errors"][0]["bound"] == 300_000
    assert response.json()["error"]["code"] == "file_too_large"
    listed = await api.client.get("/v1/files", headers={"authorization": "Bearer key-a"})
    assert listed.json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_a_body_without_a_length_is_answered_as_soon_as_it_is_over_the_bound(api: Api) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    reader, writer = await asyncio.open_connection(api.client.base_url.host, api.client.base_url.port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: a\r\nauthorization: Bearer key-a\r\ntransfer-encoding: chunked\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    for part in (head, b"x" * (300_000 + FORM_BYTES)):
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
    await writer.drain()
    async with asyncio.timeout(10):
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()


async def test_files_over_the_quota_are_refused(ada: openai.AsyncOpenAI) -> None:
    await ada.files.create(file=("a", b"x" * 290_000), purpose="batch")
    with pytest.raises(openai.APIStatusError) as caught:
        await ada.files.create(file=("b", b"x" * 290_000), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (413, "quota_exceeded")


@pytest.mark.parametrize(
    ("parts", "status", "field"),
    [
        ({"files": {"file": ("a", b"x")}}, 422, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "fine-tune"}}, 422, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "other": "1"}}, 422, "other"),
        ({"files": {"document": ("a", b"x")}, "data": {"purpose": "batch"}}, 422, "file"),
        ({"files": {"purpose": (None, "batch"), "file": (None, "text")}}, 422, "file"),
        ({"json": {"purpose": "batch"}}, 415, "content-type"),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))], "data": {"purpose": "batch"}}, 400, None),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, None),
    ],
)
async def test_a_wrong_form_is_refused_naming_the_field(
    api: Api, parts: dict[str, object], status: int, field: str | None
) -> None:
    headers = {"authorization": "Bearer key-a", **parts.pop("headers", {})}  # type: ignore[dict-item]
    response = await api.client.post("/v1/files", headers=headers, **parts)  # type: ignore[arg-type]
    assert response.status_code == status
    errors = response.json().get("errors", [])
    assert [error["field"] for error in errors] == ([field] if field else [])
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "after=file-unknown", "order=up"])
async def test_wrong_pages_are_refused(api: Api, query: str) -> None:
    response = await api.client.get(f"/v1/files?{query}", headers={"authorization": "Bearer key-a"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_without_redis_files_are_unavailable_for_now(serve: Serve) -> None:
    async with serve(redis_url="redis://127.0.0.1:1/0") as api:
        response = await api.client.get("/v1/files")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
