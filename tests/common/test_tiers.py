from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import TiersError
from common.messages import Overload, Slo
from common.tiers import DEFAULT_FILE, Tier, load_tiers

GOOD: dict[str, Any] = {
    "value": 1,
    "ttft_ms": 500,
    "tpot_ms": 50,
    "patience_s": 30,
    "on_overload": "defer",
    "max_queued": 9,
}


def written(folder: Path, content: object) -> Path:
    path = folder / "tiers.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def one_tier(folder: Path, **changes: Any) -> Path:
    body = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return written(folder, {"tiers": {"only": body}})


def test_the_default_tiers_are_those_of_the_docs() -> None:
    tiers = load_tiers()
    slos = {tier.name: tier.slo() for tier in tiers.tiers}
    assert slos == {
        "tool": Slo(None, 3, 50),
        "code": Slo(None, 5, 50),
        "chat": Slo(None, 5, 100),
        "reasoning": Slo(None, 3, 100, 50),
        "summarize": Slo(None, 3, 100),
        "batch": None,
    }
    assert tiers.default == "chat"
    assert tiers.by_name["tool"].slo(last_round=True) == Slo(None, 3, 100)
    assert tiers.by_name["chat"].slo(last_round=True) == tiers.by_name["chat"].slo()


def test_tiers_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert load_tiers(written(tmp_path, {"tiers": {"b": GOOD, "a": GOOD}})).names == ("b", "a")
    assert load_tiers().names == tuple(yaml.safe_load(DEFAULT_FILE.read_text())["tiers"])


def test_a_tier_has_all_that_the_file_says(tmp_path: Path) -> None:
    path = one_tier(tmp_path, thinking_tpot_ms=25, last_round_tpot_ms=75)
    assert load_tiers(path).tiers == (Tier("only", 1.0, 30.0, Overload.DEFER, 9, 500.0, None, 50.0, 25.0, 75.0),)


def test_the_first_tier_is_the_default_one(tmp_path: Path) -> None:
    assert load_tiers(one_tier(tmp_path)).default == "only"


def test_scaling_stretches_every_tpot_and_nothing_else(tmp_path: Path) -> None:
    path = one_tier(tmp_path, thinking_tpot_ms=25, last_round_tpot_ms=75)
    (tier,) = load_tiers(path, tpot_scale=2.0).tiers
    assert tier == Tier("only", 1.0, 30.0, Overload.DEFER, 9, 500.0, None, 100.0, 50.0, 150.0)


def test_a_tier_without_slo_is_best_effort(tmp_path: Path) -> None:
    (tier,) = load_tiers(one_tier(tmp_path, ttft_ms=None, tpot_ms=None)).tiers
    assert tier.slo() is None
    assert tier.slo(last_round=True) is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"value": -1}, "value"),
        ({"tpot_ms": 0}, "tpot_ms"),
        ({"tpot_ms": "fast"}, "tpot_ms"),
        ({"tpot_ms": True}, "tpot_ms"),
        ({"ttft_ms": float("nan")}, "ttft_ms"),
        ({"patience_s": float("inf")}, "patience_s"),
        ({"max_queued": 0}, "max_queued"),
        ({"max_queued": 0.5}, "max_queued"),
        ({"on_overload": "panic"}, "panic"),
        ({"on_overload": ["defer"]}, "defer"),
        ({"value": None}, "value"),
        ({"patience_s": None}, "patience_s"),
        ({"tpto_ms": 1}, "tpto_ms"),
        ({"name": 5}, "name"),
        ({"ttft_slowdown": 3}, "exactly one"),
        ({"ttft_ms": None}, "exactly one"),
        ({"tpot_ms": None}, "tpot_ms"),
        ({"tpot_ms": None, "ttft_ms": None, "thinking_tpot_ms": 3}, "tpot_ms"),
    ],
)
def test_a_wrong_field_is_named_with_its_tier(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TiersError, match=rf"tier 'only'.*{field}"):
        load_tiers(one_tier(tmp_path, **changes))


@pytest.mark.parametrize(
    "content",
    ["", "tiers: {}", "tiers: [1]", "[]", "tiers: {a: 3}", "tiers: {a: {1: 2}}", "tiers: {a", "a: &a [*a]"],
)
def test_a_file_without_tiers_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(TiersError):
        load_tiers(written(tmp_path, content))


@pytest.mark.parametrize("default", ["other", ["only"], 3])
def test_an_unknown_default_is_an_error(tmp_path: Path, default: object) -> None:
    with pytest.raises(TiersError, match="default tier"):
        load_tiers(written(tmp_path, {"tiers": {"only": GOOD}, "default": default}))


def test_a_file_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TiersError):
        load_tiers(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TiersError):
        load_tiers(tmp_path / "binary.yaml")
