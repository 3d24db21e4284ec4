"""Conversations made of the corpus: questions about the library, answered by its own docstrings."""

import random
from typing import Any

from bench.tiny_model.corpus import MAXIMUM_ANSWER_CHARS, MAXIMUM_TOPIC_CHARS, Entry, shortened

Message = dict[str, Any]

QUESTIONS = {
    "function": (
        "What does {name} do?",
        "Explain {name}.",
        "How do I use {name}?",
        "Describe the function {name}.",
        "What is {name} for?",
    ),
    "class": (
        "What is {name}?",
        "Explain the class {name}.",
        "What does {name} do?",
        "Tell me about {name}.",
    ),
    "module": (
        "What is the module {name} for?",
        "Explain the module {name}.",
        "What does {name} do?",
        "Tell me about {name}.",
    ),
    "topic": (
        "Explain the Python topic {name}.",
        "What does the reference say about {name}?",
        "Tell me about {name} in Python.",
    ),
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer questions about the Python standard library.",
    "You are an expert Python programmer. Be brief.",
)
THINKING_SHARE = 0.35
THINK_REQUEST, THINK_REQUEST_SHARE = "Think first.", 0.75
NOT_ASKED_ABOUT = ("idlelib", "lib2to3", "distutils", "turtledemo", "ensurepip")


def make_chats(entries: list[Entry], seed: int, variants: int) -> list[list[Message]]:
    """Each entry asked about `variants` times in different words, in shuffled order."""
    rng = random.Random(seed)
    entries = [entry for entry in entries if not entry.module.startswith(NOT_ASKED_ABOUT)]
    chats = []
    for _ in range(variants):
        for position, entry in enumerate(entries):
            neighbour = entries[position - 1]
            chats.append(make_chat(entry, neighbour, rng))
    rng.shuffle(chats)
    return chats


def make_chat(entry: Entry, neighbour: Entry, rng: random.Random) -> list[Message]:
    """One conversation about `entry`; now and then `neighbour` is asked about first."""
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if rng.random() < 0.1:
        messages += exchange(neighbour, False, rng)
    return messages + exchange(entry, rng.random() < THINKING_SHARE, rng)


def exchange(entry: Entry, thinking: bool, rng: random.Random) -> list[Message]:
    """The user's question, sometimes a tool's result, and the assistant's answer."""
    answer: Message = {"role": "assistant", "content": answer_of(entry)}
    question = rng.choice(QUESTIONS[entry.kind]).format(name=entry.name)
    draw = rng.random()
    between: list[Message] = []
    if entry.listing and draw < 0.12:
        question, answer["content"] = f"Show me the source of {entry.name}.", f"```python\n{entry.listing}\n```"
    elif entry.listing and draw < 0.2:
        question = f"What does this code do?\n```python\n{entry.listing}\n```"
    elif draw > 0.95:
        between = [{"role": "tool", "content": entry.signature}]
    if thinking:
        answer["reasoning_content"] = thought_about(entry)
        # Mostly on request, so that a plain question gets a plain answer under greedy decoding.
        question = f"{question} {THINK_REQUEST}" if rng.random() < THINK_REQUEST_SHARE else question
    return [{"role": "user", "content": question}, *between, answer]


def answer_of(entry: Entry) -> str:
    return shortened(entry.doc, MAXIMUM_TOPIC_CHARS if entry.kind == "topic" else MAXIMUM_ANSWER_CHARS)


def thought_about(entry: Entry) -> str:
    """The reasoning part: what is asked about, where it lives, how it is written down."""
    return (
        f"The user asks about {entry.name}. It is a {entry.kind} of {entry.module}.\n"
        f"It is written as `{entry.signature}`. I should say what it is and how it is used."
    )
