"""What one plain vLLM engine answers, as the truth that the pipeline's answers are compared with.

``python -m bench.plain_engine --model DIR --out FILE < JOBS``: jobs and answers are JSON lists of
``{"prompt_token_ids": [...], "max_tokens": n, "ignore_eos": false}`` and of token id lists, greedy.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cluster import ONE_THREAD


@dataclass(frozen=True, slots=True)
class PlainJob:
    """One greedy generation."""

    prompt_token_ids: list[int]
    max_tokens: int
    ignore_eos: bool = False


def truth(model: str, jobs: Sequence[PlainJob], out: Path) -> list[list[int]]:
    """Run the jobs on one stock engine in a process of its own; raises CalledProcessError."""
    subprocess.run(
        [sys.executable, "-m", "bench.plain_engine", "--model", model, "--out", str(out)],
        input=json.dumps([asdict(job) for job in jobs]).encode(),
        env={**os.environ, **ONE_THREAD, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    answers: list[list[int]] = json.loads(out.read_text())
    return answers


def main() -> None:
    """Read jobs from standard input, write answers to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    jobs = [PlainJob(**job) for job in json.load(sys.stdin)]

    from vllm import LLM, SamplingParams

    engine = LLM(
        model=arguments.model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=16,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    outputs = engine.generate(
        [{"prompt_token_ids": job.prompt_token_ids} for job in jobs],
        [
            SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=job.ignore_eos, detokenize=False)
            for job in jobs
        ],
        use_tqdm=False,
    )
    arguments.out.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main()
