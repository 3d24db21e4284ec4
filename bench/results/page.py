"""``docs/results.md`` and the README's table, as text, from raw files."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.results.group import DEPLOYED, LABELS, OURS, PAPER_COMPARED, Found, Group, command_of
from bench.results.rates import attained, heading, set_aside
from bench.results.table import table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

_HEAD = """# Results

Made by `make results` from the raw JSON files in [results/](results); nothing here is typed by hand. Capacity is the
highest rate, in requests per second and engine, at which 90 % of **all** requests attain their SLO: first token in
time, each tenth token and the last in time, 5 % tolerance; who was deferred or refused counts as missed. Ratios are
geometric means over scenarios, against the best of the named systems in each scenario. `vLLM` is the stock scheduler at
the best token budget for the scenario, found on another seed.
"""

_AZURE = """
Arrivals of Azure's code and conversation traces: Patel et al., *Splitwise*, ISCA 2024 (Azure LLM inference traces 2023,
CC-BY-4.0).
"""
_AZURE_TRACES = ("trace of code", "trace of conv")
"""Replays of files that are named as Azure's are."""


def page(
    groups: Sequence[Group],
    rated: Sequence[Group],
    others: Mapping[str, Found],
    figures: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    """The whole page; ``figures`` are (title, path) by group, ``rated`` were studied at one rate."""
    parts = [_HEAD, "## Summary\n", summary(groups)]
    for group in groups:
        parts += [f"## {group.title[0].upper()}{group.title[1:]}\n", capacities(group), deferred(group)]
        for title, path in figures.get(group.slug, ()):
            parts.append(f"![{title}: {group.title}]({path})\n")
        parts.append(_provenance(group))
    if rated:
        parts.append("## At given rates\n")
    for group in rated:
        parts += filter(None, [f"**{heading(group)}**\n", attained(group), set_aside(group), _provenance(group)])
    if others:
        parts += ["## Other measurements\n", *(_other(name, raw) for name, raw in others.items())]
    return "\n".join(parts).rstrip() + "\n"


def summary(groups: Sequence[Group]) -> str:
    """One line for each engine and arrival process."""
    rows = [
        (
            group.engine, group.arrivals, _rate(group.mean_capacity(OURS)),
            _times(group.ratio(["vllm-tuned"] if group.mode == "real" else ["vllm"])),
            _times(group.ratio(DEPLOYED)), _times(group.ratio(PAPER_COMPARED)), _times(group.ratio(["slos-serve"])),
            _share(group.ratio(["bound"])),
        )
        for group in groups
    ]  # fmt: skip
    head = (
        "engines", "arrivals", "ours, req/s and engine", "vs vLLM at its best budget", "vs best deployed",
        "vs best of prefill first, Sarathi, disaggregated", "vs the paper's policy", "of the upper bound",
    )  # fmt: skip
    return table(head, rows)


def readme(groups: Sequence[Group]) -> str:
    """What stands between the README's markers."""
    rows = [
        (
            group.engine, group.arrivals, _rate(group.mean_capacity(OURS)),
            _times(group.ratio(["vllm-tuned"] if group.mode == "real" else ["vllm"])),
            _times(group.ratio(DEPLOYED)), _times(group.ratio(["slos-serve"])),
        )
        for group in groups
    ]  # fmt: skip
    head = (
        "engines",
        "arrivals",
        "requests/s and engine",
        "vs tuned vLLM",
        "vs best deployed",
        "vs the paper's policy",
    )
    told = (
        "Requests per second and engine at which 90 % of all requests meet their SLO, geometric means over scenarios; "
        "by scenario, with figures and commands, in [docs/results.md](docs/results.md) (`make results`).\n"
    )
    return f"{told}\n{table(head, rows)}"


def put_between(text: str, inserted: str) -> str:
    """``text`` with what is between its markers replaced; raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inserted.rstrip()}\n{END}{after}"


def capacities(group: Group) -> str:
    """Capacity with the range of seeds, by scenario and system."""
    rows = []
    for name, of in group.scenarios.items():
        rows.append((name, *(_seeds(of.get(system)) for system in group.systems)))
    rows.append(("geometric mean", *(_rate(group.mean_capacity(system)) for system in group.systems)))
    return table(("requests/s and engine", *(LABELS[system] for system in group.systems)), rows)


def deferred(group: Group) -> str:
    """What a policy could win attainment with unfairly, at its capacity."""
    rows = []
    for name, of in group.scenarios.items():
        for system in (OURS, "slos-serve"):
            if system in of:
                rows.append((name, LABELS[system], *_fairness(of[system])))
    head = (
        "at its capacity", "system", "attained", "at tolerance 0", "deferred or refused", "TTFT p99 of all, s",
        "deferred: TTFT p99 / SLO",
    )  # fmt: skip
    return table(head, rows)


def _fairness(found: Found) -> tuple[str, ...]:
    report = found["report"]
    return (
        f"{report['attainment']:.1%}",
        f"{report['attainment_strict']:.1%}",
        f"{report['deferred'] + report['rejected']:.1%}",
        _never(report["ttft_s"][2]),
        _never(found["deferred_ttft_over_slo_p99"]),
    )


def _provenance(group: Group) -> str:
    lines = [f"`{command}`" for command in group.commands()]
    of = ", ".join(f"[{name}](results/{name}.json)" for name in group.files)
    told = f"{'; '.join(lines)} at {', '.join(group.commits())}. Raw: {of}.\n"
    return told + _AZURE if group.arrivals in _AZURE_TRACES else told


def _other(name: str, raw: Found) -> str:
    module = raw["command"].split()[2]
    told = f"### {_WHAT.get(module, name)}\n\n[{name}](results/{name}.json): `{command_of(raw)}` at "
    told += f"{raw['commit']}{'+' if raw['dirty'] else ''}, "
    told += f"{raw['machine']['cores']} cores of {raw['machine']['cpu']}\n"
    values = [(key, _scalar(value)) for key, value in raw.items() if key not in _ABOUT and _is_plain(value)]
    tables = [_nested(key, value) for key, value in raw.items() if key not in _ABOUT]
    measured = table(("what", "measured"), values) if values else None
    return "\n".join([told, *filter(None, [measured, *tables])])


_WHAT = {
    "bench.ablation": "What each ingredient is worth",
    "bench.batch_policy": "The batch policy on a real engine",
    "bench.control_plane": "What the control plane carries",
    "bench.latency_model": "The latency model against real steps",
    "bench.overhead": "What the product adds to one stock server",
    "bench.planner": "What a plan costs",
    "bench.real.validate": "The simulator against real engines",
    "bench.speculation": "Speculation by tier on a real engine",
}
"""Headings, by the command that measured."""
_ABOUT = ("format", "command", "commit", "dirty", "date", "machine", "settings")


def _nested(name: str, value: Any) -> str:
    """A list of maps, or a map of maps, as a table."""
    rows = value if isinstance(value, list) else []
    if isinstance(value, dict):
        rows = [{name: key, **inner} for key, inner in value.items() if isinstance(inner, dict)]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows:
        return ""
    head = [key for key, inner in rows[0].items() if _is_plain(inner)]
    return table(head, [tuple(_scalar(row.get(key)) for key in head) for row in rows])


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, int | float) for one in value)
    return value is None or isinstance(value, str | int | float)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_scalar(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seeds(found: Found | None) -> str:
    if found is None:
        return "-"
    seeds = found["by_seed"]
    if len(seeds) < 2:
        return _rate(found["capacity"])
    return f"{_rate(found['capacity'])} ({_rate(min(seeds))} to {_rate(max(seeds))})"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _never(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"
