"""Make the tokenizer, the target and the draft: `python -m bench.tiny_model --out DIR --seed 0 --minutes 28`."""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch

from bench.tiny_model import FOLDER
from bench.tiny_model.batches import encode_split
from bench.tiny_model.corpus import load_corpus
from bench.tiny_model.evaluate import answer, measure_acceptance, perplexity, perplexity_by_position
from bench.tiny_model.models import DRAFT_SHAPE, TARGET_SHAPE, copy_weights, count_parameters, new_model, save_model
from bench.tiny_model.tokenizer import train_tokenizer
from bench.tiny_model.train import distillation_loss, next_token_loss, train

TARGET_TIME_SHARE = 0.7
RESUMED_RATE_SHARE = 0.5
CHAT_VARIANTS = 4
QUESTIONS = ("What does os.path.join do?", "Tell me about tarfile. Think first.", "How do I use shutil.copytree?")


def main() -> None:
    """Print progress lines, then one JSON object as the last line; it is also written to DIR/training.json."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    result = make_models(arguments.out, arguments.seed, arguments.minutes * 60, arguments.resume)
    (arguments.out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.tiny_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder that gets target/, draft/ and training.json")
    parser.add_argument("--resume", type=Path, help="go on from the models of this folder, at a lower rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=28.0, help="wall time for training both models")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_models(out: Path, seed: int, training_s: float, resume: Path | None = None) -> dict[str, object]:
    """Train and save both models under `out`; returns what was measured."""
    rate_share = RESUMED_RATE_SHARE if resume else 1.0
    start = time.monotonic()
    corpus = load_corpus(seed)
    tokenizer = train_tokenizer([*corpus.train.sources, *(entry.doc for entry in corpus.train.entries)])
    streams = encode_split(corpus.train, tokenizer, seed, CHAT_VARIANTS)
    held_out = encode_split(corpus.held_out, tokenizer, seed, 1)
    say(f"corpus: {len(streams.sources)} tokens of source, {len(streams.chats)} of chat")

    target = new_model(TARGET_SHAPE, tokenizer, seed)
    if resume:
        copy_weights(resume / "target", target)
    target_s = training_s * TARGET_TIME_SHARE
    of_target = train("target", target, next_token_loss(target), streams, target_s, seed, say, rate_share)
    save_model(target, tokenizer, out / "target")

    draft = new_model(DRAFT_SHAPE, tokenizer, seed + 1)
    if resume:
        copy_weights(resume / "draft", draft)
    draft_s, of_pair = training_s - target_s, distillation_loss(draft, target)
    of_draft = train("draft", draft, of_pair, streams, draft_s, seed + 1, say, rate_share)
    save_model(draft, tokenizer, out / "draft")

    return {
        "perplexity": {
            "target_source": perplexity(target, held_out.sources),
            "target_chat": perplexity(target, held_out.chats),
            "draft_source": perplexity(draft, held_out.sources),
            "draft_chat": perplexity(draft, held_out.chats),
            "target_source_by_position": perplexity_by_position(target, held_out.sources),
            "draft_source_by_position": perplexity_by_position(draft, held_out.sources),
        },
        "acceptance": asdict(measure_acceptance(draft, target, held_out, seed)),
        "parameters": {"target": count_parameters(target), "draft": count_parameters(draft)},
        "training": {"target": asdict(of_target), "draft": asdict(of_draft)},
        "samples": {question: answer(target, tokenizer, question) for question in QUESTIONS},
        "seed": seed,
        "python": platform.python_version(),
        "corpus_sha256": corpus.sha256,
        "seconds": time.monotonic() - start,
    }


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
