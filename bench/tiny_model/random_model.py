"""A Llama with random weights, for runs in which the engine must be the bottleneck.

`python -m bench.tiny_model.random_model --out DIR --parameters 25M`
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.tiny_model import TARGET
from bench.tiny_model.models import HEAD_DIM, KV_HEADS, count_parameters, new_model, save_model
from bench.tiny_model.tokenizer import VOCABULARY

HIDDEN, LAYERS, MAXIMUM_POSITIONS = 512, 8, 8192
MULTIPLE = 32


def main() -> None:
    """Write the model to DIR; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench.tiny_model.random_model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parameters", type=parse_count, default="25M", help="about how many, such as 25M")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--hidden", type=int, default=HIDDEN, help=f"a multiple of {2 * HEAD_DIM}")
    parser.add_argument("--max-positions", type=int, default=MAXIMUM_POSITIONS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = build_random_model(
        tokenizer, arguments.parameters, arguments.seed, arguments.hidden, arguments.layers, arguments.max_positions
    )
    tokenizer.model_max_length = arguments.max_positions
    save_model(model, tokenizer, arguments.out)
    print(json.dumps({"out": str(arguments.out), "parameters": count_parameters(model)}))


def build_random_model(
    tokenizer: PreTrainedTokenizerFast,
    parameters: int,
    seed: int = 0,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    max_positions: int = MAXIMUM_POSITIONS,
) -> LlamaForCausalLM:
    """A model of about that many parameters; the width of the feed-forward part makes up the number.

    Raises ValueError when attention and embedding alone need more parameters.
    """
    attention = layers * (2 * hidden * hidden + 2 * hidden * KV_HEADS * HEAD_DIM)
    per_unit_of_width = layers * 3 * hidden
    width = (parameters - attention - VOCABULARY * hidden) / per_unit_of_width
    intermediate = round(width / MULTIPLE) * MULTIPLE
    if intermediate < MULTIPLE:
        raise ValueError(f"{parameters} parameters are too few for hidden size {hidden} and {layers} layers")
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD_DIM,
        "intermediate_size": intermediate,
    }
    return new_model(shape, tokenizer, seed, max_positions)


def parse_count(text: str) -> int:
    """25000000 from "25M", 25000 from "25k", 25 from "25"."""
    scale = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}.get(text[-1:].lower(), 1)
    return round(float(text[:-1] if scale > 1 else text) * scale)


if __name__ == "__main__":
    main()
