"""The default model of the benchmarks: a small Llama target, its draft, and how both are made."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TARGET = FOLDER / "target"
DRAFT = FOLDER / "draft"

__all__ = ["DRAFT", "FOLDER", "TARGET"]
