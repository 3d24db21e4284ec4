from bench.overhead import PRODUCT, STOCK, Light, Saturated, figures
from bench.real.cpu import Usage


def test_what_is_added_is_the_difference_of_the_same_quantile() -> None:
    light = {STOCK: Light([0.070] * 99 + [0.090], [0.006] * 100), PRODUCT: Light([0.074] * 99 + [0.1], [0.0065] * 100)}
    busy = {STOCK: Saturated(1000, 1.0), PRODUCT: Saturated(1000, 1.0)}
    found = figures(light, busy)
    assert (found["added_ttft_ms_p50"], found["added_tpot_ms_p50"]) == (4.0, 0.5)
    assert found["added_ttft_ms_p99"] > found["added_ttft_ms_p50"]


def test_throughput_is_compared_per_second_and_cpu_per_1000_tokens() -> None:
    stock, product = Saturated(), Saturated()
    stock.add(1000, 1.0, Usage({"server 1": 0.1}, 0.9))
    product.add(900, 1.0, Usage({"api": 0.1, "redis": 0.08}, 0.9))
    product.add(900, 1.0, Usage({"api": 0.1, "redis": 0.08}, 0.9))
    light = {name: Light([0.07], [0.006]) for name in (STOCK, PRODUCT)}
    found = figures(light, {STOCK: stock, PRODUCT: product})
    assert found["throughput_ratio"] == 0.9
    assert found["cpu_s_per_1000_tokens_outside_engines"] == 0.2
    assert found["stock_cpu_s_per_1000_tokens_outside_engines"] == 0.1
    assert found["cpu_s_per_1000_tokens_by_process"] == {"api": 0.1111, "redis": 0.0889}
