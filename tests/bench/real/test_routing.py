from bench.real.routing import make_router


def test_round_robin_takes_turns_whatever_ends() -> None:
    router = make_router("round-robin", ["a", "b"])
    picked = [router.pick() for _ in range(3)]
    router.done("a")
    assert [*picked, router.pick()] == ["a", "b", "a", "b"]


def test_least_loaded_goes_where_the_fewest_are_under_way() -> None:
    router = make_router("least-loaded", ["a", "b"])
    assert [router.pick(), router.pick(), router.pick()] == ["a", "b", "a"]
    router.done("a")
    router.done("a")
    assert router.pick() == "a"


def test_least_loaded_spreads_sequential_requests() -> None:
    router = make_router("least-loaded", ["a", "b"])
    picked = []
    for _ in range(4):
        picked.append(router.pick())
        router.done(picked[-1])
    assert picked == ["a", "b", "a", "b"]
