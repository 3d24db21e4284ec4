from pathlib import Path

import pytest
import redis

from common.redis_server import NoRedis, RedisServer, bundled_redis, find_redis


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_it_answers_when_it_has_started_and_is_gone_afterwards(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, client(server) as connection:
        assert connection.ping()
        assert server.pid
    assert server.pid is None


def test_it_is_durable_and_never_evicts(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, client(server) as connection:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        for name, value in wanted.items():  # several names in one call are for Redis 7 and later
            assert connection.config_get(name) == {name: value}
        assert connection.config_get("bind") == {"bind": "127.0.0.1"}


@pytest.mark.parametrize("end", [RedisServer.kill, RedisServer.stop])
def test_data_survive_its_end(tmp_path: Path, end: object) -> None:
    with RedisServer(tmp_path) as server:
        port = server.port
        with client(server) as connection:
            connection.set("key", "value")
        end(server)  # type: ignore[operator] # one of the two above
        server.start()
        assert server.port == port
        with client(server) as connection:
            assert connection.get("key") == b"value"


def test_a_restart_keeps_data(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, client(server) as connection:
        connection.set("key", "value")
        server.restart()
        connection.close()
        assert connection.get("key") == b"value"


def test_options_reach_redis(tmp_path: Path) -> None:
    with RedisServer(tmp_path, options=("--maxmemory", "100mb")) as server, client(server) as connection:
        assert connection.config_get("maxmemory") == {"maxmemory": str(100 * 1024 * 1024)}


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoRedis, match="does not start"):
        RedisServer(tmp_path, options=("--no-such-option", "1")).start()


def test_two_servers_take_two_ports(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "a") as one, RedisServer(tmp_path / "b") as two:
        assert one.port != two.port


def test_the_wheels_redis_is_found_without_one_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = bundled_redis()
    if bundled is None:
        with pytest.raises(NoRedis, match="install"):
            find_redis()
    else:
        assert find_redis() == bundled


def test_the_systems_redis_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "redis-server"
    mine.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis() == mine
