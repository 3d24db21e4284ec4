"""``python -m bench.results``: ``docs/results.md``, its figures and the README's table, from raw JSON files.

Reads nothing but ``docs/results/*.json``, so that anybody can make the page again without running anything.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.results import raw
from bench.results.canvas import save
from bench.results.closeup import burst, has_runs, latencies, predictions
from bench.results.group import Group, groups
from bench.results.overview import attainment, capacities
from bench.results.page import BEGIN, page, put_between, readme
from bench.results.rates import at_rates

ROOT = Path(__file__).parents[2]


FIGURES = ("attainment", "capacity", "latencies", "burst", "predicted")
"""What figures of a group are called."""


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.results", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "results", help="raw files; figures go here too")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help=f"has its table after {BEGIN}")
    parser.add_argument("--figures", choices=("svg", "png"), default="svg")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        files = raw.read_all(args.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not files:
        print(f"there are no raw results in {args.folder}", file=sys.stderr)
        return 2
    found = groups(files)
    used = {name for group in found for name in group.files}
    others = {name: one for name, one in files.items() if name not in used and "scenarios" not in one}
    made = {group.slug: draw(group, args.folder, args.figures) for group in found}
    kept = {path for paths in made.values() for _, path in paths}
    for name in FIGURES:
        for path in set(args.folder.glob(f"*-{name}.{args.figures}")) - kept:  # of groups that are no more
            path.unlink()
    at = {slug: [(title, _link(path, args.page)) for title, path in paths] for slug, paths in made.items()}
    args.page.write_text(page(found, at_rates(files), others, at))
    if args.readme.exists():
        args.readme.write_text(put_between(args.readme.read_text(), readme(found)))
    print(f"{args.page}: {len(files)} raw files, {sum(map(len, made.values()))} figures")
    return 0


def draw(group: Group, folder: Path, ending: str) -> list[tuple[str, Path]]:
    """Write a group's figures; returns their titles and paths."""
    figures = [("Attainment over rate", "attainment", attainment(group)), ("Capacity", "capacity", capacities(group))]
    if has_runs(group):
        figures.append(("TTFT and TPOT", "latencies", latencies(group)))
        figures.append(("One burst", "burst", burst(group)))
        predicted = predictions(group)
        if predicted is not None:
            figures.append(("Predicted against achieved", "predicted", predicted))
    paths = []
    for title, name, figure in figures:
        path = folder / f"{group.slug}-{name}.{ending}"
        save(figure, group, path)
        paths.append((title, path))
    return paths


def _link(path: Path, page: Path) -> str:
    try:
        return path.relative_to(page.parent).as_posix()
    except ValueError:
        return path.as_posix()


if __name__ == "__main__":
    sys.exit(main())
