"""Text to train on: the sources and docstrings of the running Python's standard library (PSF licence)."""

import ast
import hashlib
import inspect
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "encodings", "pydoc_data", "__pycache__", "idle_test"})
C_MODULES = ("builtins", "math", "cmath", "itertools", "time", "sys", "gc", "zlib", "select", "errno", "binascii")
PUBLIC_NAMES = {"posixpath": "os.path", "_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io"}
HELD_OUT_ONE_IN = 40
MINIMUM_DOC_CHARS = 20
MAXIMUM_ANSWER_CHARS = 900
MAXIMUM_TOPIC_CHARS = 3000
MAXIMUM_LISTING_LINES = 25


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing of the library, from which questions and answers are made."""

    kind: str  # "module", "class", "function" or "topic"
    name: str
    module: str
    signature: str
    doc: str
    listing: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """Whole source files, and the documented entries found in those files."""

    sources: list[str]
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and held-out parts never share a file or a topic."""

    train: Split
    held_out: Split

    @property
    def sha256(self) -> str:
        """A digest of all source text, to tell whether two runs saw the same data."""
        digest = hashlib.sha256()
        for text in self.train.sources + self.held_out.sources:
            digest.update(text.encode())
        return digest.hexdigest()


def load_corpus(seed: int, stdlib: Path | None = None) -> Corpus:
    """Read the library at `stdlib` (default: the running interpreter's own); `seed` picks the held-out part."""
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    train, held_out = Split([], []), Split([], [])
    for path in source_files(root):
        text = path.read_text(encoding="utf-8")
        module = module_name(path.relative_to(root))
        part = held_out if is_held_out(module, seed) else train
        part.sources.append(text)
        part.entries.extend(entries_of_source(text, module))
    for entry in [*entries_of_c_modules(), *entries_of_topics()]:
        part = held_out if is_held_out(entry.name, seed) else train
        part.entries.append(entry)
    return Corpus(train, held_out)


def source_files(root: Path) -> list[Path]:
    """Python files of the library in a fixed order, tests and generated tables left out."""
    files = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts) and is_utf8(path):
            files.append(path)
    return files


def is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_held_out(name: str, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def module_name(relative: Path) -> str:
    parts = [*relative.parts[:-1], relative.stem]
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    return PUBLIC_NAMES.get(name, name)


def entries_of_source(text: str, module: str) -> Iterator[Entry]:
    """Documented public classes and functions of one file, methods included."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    doc = ast.get_docstring(tree)
    if is_worth_asking(module, doc):
        yield Entry("module", module, module, f"import {module}", doc or "")
    yield from _entries_of_body(tree.body, text.splitlines(), module, module)


def _entries_of_body(body: list[ast.stmt], lines: list[str], module: str, prefix: str) -> Iterator[Entry]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name, doc = f"{prefix}.{node.name}", ast.get_docstring(node)
        is_class = isinstance(node, ast.ClassDef)
        if is_worth_asking(node.name, doc):
            listing = inspect.cleandoc("\n" + "\n".join(lines[node.lineno - 1 : node.end_lineno]))
            kept = listing if len(listing.splitlines()) <= MAXIMUM_LISTING_LINES else ""
            kind = "class" if is_class else "function"
            yield Entry(kind, name, module, listing.splitlines()[0].rstrip(" :"), doc or "", kept)
        if is_class:
            yield from _entries_of_body(node.body, lines, module, name)


def is_worth_asking(name: str, doc: str | None) -> bool:
    return doc is not None and len(doc) >= MINIMUM_DOC_CHARS and not name.startswith("_")


def entries_of_c_modules() -> Iterator[Entry]:
    """Docstrings of names that are written in C and so have no source file in the library."""
    for module in C_MODULES:
        for name, thing in sorted(vars(import_module(module)).items()):
            doc = inspect.getdoc(thing) if callable(thing) else None
            if is_worth_asking(name, doc):
                full = name if module == "builtins" else f"{module}.{name}"
                kind = "class" if inspect.isclass(thing) else "function"
                yield Entry(kind, full, module, f"{name}{text_signature(thing)}", doc or "")


def text_signature(thing: object) -> str:
    return getattr(thing, "__text_signature__", None) or "(...)"


def entries_of_topics() -> Iterator[Entry]:
    """Sections of the language reference that `help()` shows."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        first_line = text.strip().splitlines()[0]
        yield Entry("topic", name, "the language reference", first_line, text.strip())


def shortened(text: str, limit_chars: int) -> str:
    """Whole paragraphs of `text` up to the limit, at least one (cut at a line if even that is too long)."""
    kept = ""
    for paragraph in text.split("\n\n"):
        if kept and len(kept) + len(paragraph) > limit_chars:
            break
        kept = f"{kept}\n\n{paragraph}" if kept else paragraph
    if len(kept) > limit_chars:
        kept = kept[:limit_chars].rpartition("\n")[0] or kept[:limit_chars]
    return kept.strip()


def shuffled(items: list[str], seed: int) -> list[str]:
    """A shuffled copy."""
    return random.Random(seed).sample(items, len(items))
