import random
import time
from collections.abc import AsyncIterator

import pytest

from common.keys import Keys
from common.offline.files import CHUNK_BYTES, FileStore, FileTooLarge, QuotaExceeded, StoredFile
from common.offline.store import connect
from common.settings import Settings


async def pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for first in range(0, len(content), size):
        yield content[first : first + size]


@pytest.fixture
async def files(redis_url: str) -> AsyncIterator[FileStore]:
    settings = Settings(redis_url=redis_url, max_file_bytes=1_000_000, file_quota_bytes=1_500_000)
    redis = connect(settings)
    yield FileStore(redis, Keys(), settings)
    await redis.aclose()


async def upload(files: FileStore, content: bytes, tenant: str = "ada", name: str = "in.jsonl") -> StoredFile:
    return await files.upload(tenant, name, "batch", pieces(content))


async def content_of(files: FileStore, file: StoredFile) -> bytes:
    return b"".join([chunk async for chunk in files.read(file)])


async def keys_of(files: FileStore) -> list[str]:
    return sorted(key.decode() for key in await files._redis.keys("*"))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
async def test_what_is_read_is_what_was_uploaded(files: FileStore, size: int) -> None:
    content = random.Random(size).randbytes(size)
    file = await upload(files, content)
    assert await files.get("ada", file.id) == file
    assert await content_of(files, file) == content


async def test_lines_are_numbered_over_chunk_borders_and_blank_ones_are_left_out(files: FileStore) -> None:
    first, second = b"a" * (CHUNK_BYTES + 10), b"b" * CHUNK_BYTES
    file = await upload(files, first + b"\n\n" + second + b"\r\n \nlast")
    lines = [(number, line.strip()) async for number, line in files.lines(file)]
    assert lines == [(1, first), (3, second), (5, b"last")]


async def test_a_file_over_the_bound_is_refused_and_nothing_of_it_is_kept(files: FileStore) -> None:
    with pytest.raises(FileTooLarge):
        await upload(files, b"x" * 1_000_001)
    assert await keys_of(files) == []


async def test_uploads_over_a_tenants_quota_are_refused_until_it_deletes_something(files: FileStore) -> None:
    first = await upload(files, b"x" * 900_000)
    with pytest.raises(QuotaExceeded):
        await upload(files, b"x" * 900_000)
    await upload(files, b"x" * 900_000, tenant="bob")
    assert await files.delete("ada", first.id)
    await upload(files, b"x" * 900_000)


async def test_another_tenants_file_can_not_be_seen_listed_or_deleted(files: FileStore) -> None:
    file = await upload(files, b"secret")
    assert await files.get("bob", file.id) is None
    assert await files.list("bob", None, None, 10, newest_first=True) == []
    assert not await files.delete("bob", file.id)
    assert await content_of(files, file) == b"secret"


async def test_a_deleted_file_leaves_nothing_behind(files: FileStore) -> None:
    file = await upload(files, b"x" * 300_000)
    assert await files.delete("ada", file.id)
    assert await keys_of(files) == []
    assert not await files.delete("ada", file.id)


async def test_pages_follow_each_other_in_both_orders_and_by_purpose(files: FileStore) -> None:
    made = [await upload(files, b"x", name=str(number)) for number in range(5)]
    output = await files.write("file-output", "ada", "out", pieces(b"y"))
    assert await files.list("ada", None, made[1].id, 2, newest_first=False) == made[2:4]
    assert await files.list("ada", None, made[1].id, 5, newest_first=True) == [made[0]]
    assert await files.list("ada", "batch_output", None, 5, newest_first=False) == [output]
    assert await files.list("ada", "batch", None, 2, newest_first=True) == made[:2:-1]
    assert await files.list("ada", None, "file-unknown", 5, newest_first=True) is None


async def test_a_result_written_again_replaces_the_first_and_counts_once(files: FileStore) -> None:
    await files.write("file-output", "ada", "out", pieces(b"x" * 300_000))
    file = await files.write("file-output", "ada", "out", pieces(b"new"))
    assert await content_of(files, file) == b"new"
    assert await files._redis.hget(Keys().file_bytes, "ada") == b"3"


async def test_expired_files_vanish_and_free_their_tenants_quota(files: FileStore, redis_url: str) -> None:
    settings = Settings(redis_url=redis_url, file_retention_s=60)
    past = FileStore(files._redis, Keys(), settings, clock=lambda: time.time() - 61)
    old = await past.upload("a|b", "old", "batch", pieces(b"x"))
    young = await upload(files, b"y")
    assert await files.get("a|b", old.id) is None
    assert await files.sweep() == 1
    assert await files.get("ada", young.id) == young
    assert await files._redis.hgetall(Keys().file_bytes) == {b"ada": b"1"}
