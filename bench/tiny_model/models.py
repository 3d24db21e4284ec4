"""Shapes of the models; target and draft keep the same KV bytes per layer and token."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.tiny_model.tokenizer import BOS, END, EOS, MAXIMUM_POSITIONS, PAD, VOCABULARY, save_tokenizer

HEAD_DIM = 64
KV_HEADS = 2
TARGET_SHAPE = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 704}
DRAFT_SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 352}


def new_model(
    shape: dict[str, int], tokenizer: PreTrainedTokenizerFast, seed: int, max_positions: int = MAXIMUM_POSITIONS
) -> LlamaForCausalLM:
    """A model of that shape with random float32 weights drawn from `seed`."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (BOS, EOS, PAD, END)}
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "head_dim": HEAD_DIM,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": ids[BOS],
        "eos_token_id": [ids[EOS], ids[END]],
        "pad_token_id": ids[PAD],
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(common | shape)))
    model.generation_config = GenerationConfig(
        bos_token_id=ids[BOS], eos_token_id=[ids[EOS], ids[END]], pad_token_id=ids[PAD]
    )
    return model


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a complete Hugging Face folder with bfloat16 weights; `model` itself stays as it is."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    halved = LlamaForCausalLM(model.config).to(torch.bfloat16)
    halved.load_state_dict(weights)
    halved.generation_config = model.generation_config
    halved.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def copy_weights(folder: Path, model: LlamaForCausalLM) -> None:
    """Give `model` the weights saved in `folder`, in float32."""
    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())


def count_parameters(model: LlamaForCausalLM) -> int:
    """Distinct parameters: tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())
