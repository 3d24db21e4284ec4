import inspect

import pytest

from common.keys import Keys

KEYS = Keys("prod")


def all_keys(keys: Keys, name: str) -> list[str]:
    """Every key of an installation, made for one name."""
    found = []
    for attribute, member in inspect.getmembers(Keys):
        if attribute.startswith("_") or attribute == "namespace":
            continue
        if isinstance(member, property):
            found.append(getattr(keys, attribute))
        elif callable(member):
            found.append(getattr(keys, attribute)(*[name] * (len(inspect.signature(member).parameters) - 1)))
    return found


def test_all_keys_share_one_hash_tag() -> None:
    assert len(all_keys(KEYS, "x")) > 15
    assert [key for key in all_keys(KEYS, "x") if not key.startswith("{prod}:") or key.count("{") > 1] == []


def test_no_two_kinds_of_key_collide() -> None:
    keys = all_keys(KEYS, "x")
    assert len(set(keys)) == len(keys)


def test_installations_and_names_have_their_own_keys() -> None:
    assert not set(all_keys(KEYS, "x")) & set(all_keys(Keys("test"), "x"))
    assert KEYS.record("a") != KEYS.record("b")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEYS.requests("chat"), "{prod}:requests:chat"),
        (KEYS.record("r1"), "{prod}:request:r1"),
        (KEYS.work("prefill", "w1"), "{prod}:prefill:w1"),
        (KEYS.work("decode", "w1"), "{prod}:decode:w1"),
        (KEYS.replies("api1"), "{prod}:replies:api1"),
        (KEYS.leader, "{prod}:leader"),
    ],
)
def test_keys_are_those_that_operators_know(key: str, expected: str) -> None:
    assert key == expected
