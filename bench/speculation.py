"""``python -m bench.speculation``: draft lengths chosen by tier against none and a fixed four, on one real engine.

A fixed set of questions is answered greedily by so many clients at a time (low and high load), a third of them with
a tight TPOT; the same questions under each policy, in the same run. Higher tokens per second are better.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.engine_runs import SWITCHED, Answer, ask, running_engine, switch
from bench.results import raw
from bench.saying import say
from bench.tiny_model import DRAFT, TARGET
from common.codec import Tokens
from common.engine.interface import Job
from common.engine.vllm import VllmEngine
from common.messages import Sampling
from common.slo import Objective

POLICIES = {"ours": "slo", "none": "drafts:0", "fixed4": "drafts:4"}
LOADS = {"low": 2, "high": 24}
FIXED = 4
OUTPUT = 96
NAMES = (
    "os.path.join sorted json.dumps re.sub random.shuffle math.sqrt socket.bind threading.Lock asyncio.gather "
    "itertools.chain functools.reduce collections.Counter pathlib.Path subprocess.run shutil.copy time.sleep "
    "csv.reader struct.pack zlib.compress hashlib.sha256 logging.info argparse.ArgumentParser tempfile.mkdtemp "
    "heapq.heappush datetime.date glob.glob"
).split()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.speculation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The last line printed is one JSON object.",
    )
    parser.add_argument("--model", default=str(TARGET))
    parser.add_argument("--draft-model", default=str(DRAFT))
    parser.add_argument("--method", choices=["draft", "ngram"], default="draft")
    parser.add_argument("--rounds", type=int, default=3, help="times that each policy answers everything (default 3)")
    parser.add_argument("--quick", action="store_true", help="few questions once: whether it runs, not how well")
    raw.add_out(parser)
    arguments = parser.parse_args(argv)
    result = asyncio.run(run(arguments))
    raw.keep(arguments.out, "bench.speculation", argv, result)
    print(json.dumps(result))


async def run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    options: dict[str, Any] = {
        "model": arguments.model,
        "draft_model": arguments.draft_model,
        "speculation": arguments.method,
        "speculation_tokens": 8,
        "max_model_len": 2048,
        "max_num_seqs": 32,
    }
    rounds, names = (1, NAMES[:6]) if arguments.quick else (arguments.rounds, NAMES)
    questions = prompts(arguments.model, names)
    found: dict[str, dict[str, Any]] = {load: {} for load in LOADS}
    async with running_engine(SWITCHED, **options) as (engine, _):
        tpot_s = 2 * engine.latency.decode_seconds(16, 16 * 200)
        await switch(engine, POLICIES["fixed4"])
        await answer_all(engine, questions, LOADS["high"], tpot_s)  # teaches acceptance and the cost of drafts
        for load, clients in LOADS.items():
            totals = {name: [0.0, 0.0, 0.0] for name in POLICIES}
            for _ in range(rounds):
                for name, policy in POLICIES.items():
                    await switch(engine, policy)
                    tokens, seconds, steps = await answer_all(engine, questions, clients, tpot_s)
                    for at, value in enumerate((tokens, seconds, steps)):
                        totals[name][at] += value
            for name, (total, taken_s, decodes) in totals.items():
                found[load][name] = {
                    "tokens_per_s": round(total / taken_s, 1),
                    "tokens_per_decode": round(total / decodes, 3),
                }
            best = max(found[load]["none"]["tokens_per_s"], found[load]["fixed4"]["tokens_per_s"])
            found[load]["ours_over_best"] = round(found[load]["ours"]["tokens_per_s"] / best, 3)
            found[load]["acceptance_fixed4"] = round(rate_of(found[load]["fixed4"]["tokens_per_decode"], FIXED), 3)
            say(f"{load}: {found[load]}")
        errors = engine.load().policy_errors
    return {**found, "policy_errors": errors}


async def answer_all(
    engine: VllmEngine, questions: Sequence[Tokens], clients: int, tpot_s: float
) -> tuple[int, float, int]:
    """Tokens, seconds, and decodes (sequences times steps) that it took."""
    queue = list(enumerate(questions))
    tokens = steps = 0

    async def client() -> None:
        nonlocal tokens, steps
        while queue:
            number, prompt = queue.pop(0)
            tier, factor = ("tight", 1) if number % 3 == 0 else ("loose", 4)
            now_s = time.time()
            answer = Answer(Objective(now_s, 5.0, tpot_s * factor), now_s)
            sampling = Sampling(OUTPUT, 0.0, ignore_eos=True)
            await ask(engine, Job("question", prompt, sampling, tier=tier, objective=answer.objective), answer)
            tokens += len(answer.token_times_s)
            steps += len(set(answer.token_times_s))

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return tokens, time.perf_counter() - began_s, steps


def rate_of(tokens_per_decode: float, drafts: int) -> float:
    """The acceptance rate at which a decode with so many drafts gives so many tokens."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        expected = sum(middle**power for power in range(drafts + 1))
        low, high = (middle, high) if expected < tokens_per_decode else (low, middle)
    return low


def prompts(model: str, names: Sequence[str]) -> list[Tokens]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [text.format(name=name) for text in ("What does {name} do?", "Explain {name}.") for name in names]
    found = []
    for text in asked:
        messages = [{"role": "user", "content": text}]
        chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        found.append(tuple(tokenizer.encode(chat, add_special_tokens=False)))
    return found


if __name__ == "__main__":
    main()
