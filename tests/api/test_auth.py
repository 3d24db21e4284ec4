import pytest
from pydantic import SecretStr

from api.auth import Authenticator
from common.settings import Settings
from tests.api.conftest import Serve
from tests.api.pipeline import eventually
from tests.api.test_bad_input import check_problem

KEYS = SecretStr("alice=key-a, bob=key-b,key-c")
CLOSED = (("POST", "/generate"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/requests/x"))
OPEN = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")


def authenticator(keys: str | None) -> Authenticator:
    return Authenticator(Settings(api_keys=None if keys is None else SecretStr(keys)))


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"x-api-key": "é"}])
async def test_without_a_known_key_nothing_is_served(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(api_keys=KEYS) as api:
        encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        for method, path in CLOSED:
            response = await api.client.request(method, path, headers=encoded)
            check_problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            assert ("error" in response.json()) == path.startswith("/v1/")


@pytest.mark.parametrize("headers", [{"authorization": "Bearer key-a"}, {"x-api-key": "key-a"}])
async def test_a_known_key_names_the_tenant(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(api_keys=KEYS) as api:
        response = await api.client.post("/generate", json={"prompt": "x"}, headers=headers)
        assert response.status_code == 200
        assert api.pipeline.works[0].request.tenant == "alice"


async def test_tenants_see_and_cancel_only_their_own_requests(serve: Serve) -> None:
    async with serve(api_keys=KEYS) as api:
        alice, bob = {"x-api-key": "key-a"}, {"x-api-key": "key-b"}
        answer = await api.client.post("/generate", json={"prompt": "x"}, headers=alice)
        path = f"/requests/{answer.json()['request_id']}"
        assert (await api.client.get(path, headers=alice)).status_code == 200
        check_problem(await api.client.get(path, headers=bob), 404)
        check_problem(await api.client.delete(path, headers=bob), 404)


async def test_probes_metrics_and_docs_need_no_key(serve: Serve) -> None:
    async with serve(api_keys=KEYS) as api:
        await eventually(lambda: bool(api.state.ingress.relay.reading.is_set()))
        for path in OPEN:
            assert (await api.client.get(path)).status_code == 200, path


@pytest.mark.parametrize(
    ("keys", "key", "tenant"),
    [
        ("alice=k", "k", "alice"),
        ("alice=k,", "k", "alice"),
        ("alice=a=b", "a=b", "alice"),
        ("alice=k", "alice=k", None),
        ("alice=k", "alice", None),
        ("a,b", "", None),
    ],
)
def test_keys_are_read_as_tenant_and_key(keys: str, key: str, tenant: str | None) -> None:
    assert authenticator(keys).tenant(key) == tenant


def test_keys_without_a_name_are_tenants_of_their_own() -> None:
    keys = authenticator("one,two,padded==")
    names = {keys.tenant(key) for key in ("one", "two", "padded==")}
    assert None not in names
    assert len(names) == 3


@pytest.mark.parametrize("keys", [None, "", " "])
def test_without_keys_there_is_no_authentication(keys: str | None) -> None:
    assert not authenticator(keys).required


def test_keys_that_are_only_commas_are_a_mistake_and_not_an_open_door() -> None:
    with pytest.raises(ValueError):
        authenticator(",")
