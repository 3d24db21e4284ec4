"""The committed target and draft load, share a tokenizer, and know their text; no training happens here."""

# ruff: noqa: E402  # the imports of bench.tiny_model need the libraries that are checked first

import math
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from bench.tiny_model import DRAFT, FOLDER, TARGET
from bench.tiny_model.batches import Streams, draw_windows, render
from bench.tiny_model.chats import make_chats
from bench.tiny_model.corpus import entries_of_source, is_held_out, shortened
from bench.tiny_model.evaluate import answer, measure_acceptance, nats_by_position
from bench.tiny_model.models import TARGET_SHAPE, count_parameters, new_model, save_model
from bench.tiny_model.random_model import build_random_model, parse_count
from bench.tiny_model.tokenizer import SPECIAL_TOKENS, THINK_TOKENS, VOCABULARY, train_tokenizer
from bench.tiny_model.train import PHASES, next_token_loss, rate_at, train

COMMITTED_BYTES = 12_000_000
MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
# From CPython's Lib/email/iterators.py (PSF licence), a file that seed 0 holds out of training.
HELD_OUT_EXCERPT = '''\
# This function will become a method of the Message class
def walk(self):
    """Walk over the message tree, yielding each subpart.

    The walk is performed in depth-first order.  This method is a
    generator.
    """
    yield self
    if self.is_multipart():
        for subpart in self.get_payload():
            yield from subpart.walk()


# These two functions are imported into the Iterators.py interface module.
def body_line_iterator(msg, decode=False):
    """Iterate over the parts, returning string payloads line-by-line.

    Optional decode (default False) is passed through to .get_payload().
    """
    for subpart in msg.walk():
        payload = subpart.get_payload(decode=decode)
        if isinstance(payload, str):
            yield from StringIO(payload)


def typed_subpart_iterator(msg, maintype='text', subtype=None):
    """Iterate over the subparts with a given MIME type.

    Use `maintype' as the main MIME type to match against; this defaults to
    "text".  Optional `subtype' is the MIME subtype to match against; if
    omitted, only the main type is matched.
    """
    for subpart in msg.walk():
        if subpart.get_content_maintype() == maintype:
            if subtype is None or subpart.get_content_subtype() == subtype:
                yield subpart
'''
SOURCE = '''\
"""Tools for boxes of every kind."""

def open_box(lid):
    """Open the box by its lid and return it."""
    return lid

class Box:
    """A thing that holds other things."""

    def weigh(self):
        """Return the weight of the box in grams."""

    def _hidden(self):
        """This one is private and not asked about."""
'''


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TARGET)


@pytest.fixture(scope="module")
def target() -> Any:
    return load(TARGET)


@pytest.fixture(scope="module")
def draft() -> Any:
    return load(DRAFT)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perplexity_of(text: str, model: Any, tokenizer: Any) -> float:
    tokens = torch.tensor([tokenizer.encode(text)])
    return math.exp(nats_by_position(model, tokens).mean().item())


def test_each_model_folder_is_complete() -> None:
    for folder in (TARGET, DRAFT):
        assert {path.name for path in folder.iterdir()} >= MODEL_FILES


def test_all_committed_files_fit_in_twelve_megabytes() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= COMMITTED_BYTES


def test_target_has_about_five_million_parameters_and_draft_under_one(target: Any, draft: Any) -> None:
    assert 4_500_000 < count_parameters(target) < 5_500_000
    assert 300_000 < count_parameters(draft) < 1_000_000


def test_target_and_draft_keep_the_same_kv_bytes_per_layer_and_token(target: Any, draft: Any) -> None:
    shapes = [(model.config.num_key_value_heads, model.config.head_dim) for model in (target, draft)]
    assert shapes == [(2, 64), (2, 64)]


def test_both_models_take_the_full_context(target: Any, draft: Any) -> None:
    assert [model.config.max_position_embeddings for model in (target, draft)] == [4096, 4096]


def test_both_models_share_one_tokenizer_byte_for_byte() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (TARGET / name).read_bytes() == (DRAFT / name).read_bytes()


@pytest.mark.parametrize("text", [HELD_OUT_EXCERPT, "Grüße, 世界 🙂\n\ttabs  and   spaces ", "", "\x00\x7f"])
def test_text_survives_the_round_trip(text: str, tokenizer: Any) -> None:
    assert text == tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)


def test_a_prompt_begins_with_bos_once(tokenizer: Any) -> None:
    assert [tokenizer.bos_token_id] == tokenizer.encode("")


def test_role_and_think_tokens_are_single_tokens(tokenizer: Any) -> None:
    for token in (*SPECIAL_TOKENS, *THINK_TOKENS):
        assert [tokenizer.convert_tokens_to_ids(token)] == tokenizer.encode(token, add_special_tokens=False)
    assert len(tokenizer) == VOCABULARY


def test_think_tokens_stay_in_the_text_when_special_tokens_are_skipped(tokenizer: Any) -> None:
    tokens = tokenizer.encode("<think>why</think>yes<|end|>")
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "<think>why</think>yes"


def test_generation_ends_at_the_end_of_text_and_of_a_turn(tokenizer: Any) -> None:
    for folder in (TARGET, DRAFT):
        ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
        assert tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"]) == ends


def test_chat_template_renders_all_roles_and_ends_with_the_generation_prompt(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hi", "reasoning_content": "an old thought"},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "And now?"},
    ]
    expected = (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n"
        "<|tool|>\n42<|end|>\n<|user|>\nAnd now?<|end|>\n<|assistant|>\n"
    )
    assert expected == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(("thinking", "opening"), [(True, "<think>\n"), (False, "")])
def test_chat_template_opens_the_thinking_part_on_request(thinking: bool, opening: str, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert prompt.endswith(f"<|assistant|>\n{opening}")


def test_an_unknown_role_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: wizard"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "Hello"}], tokenize=False)


def test_held_out_text_is_likely_to_both_models_but_not_to_random_weights(
    target: Any, draft: Any, tokenizer: Any
) -> None:
    untrained = new_model(TARGET_SHAPE, tokenizer, seed=0)
    assert perplexity_of(HELD_OUT_EXCERPT, target, tokenizer) < 40
    assert perplexity_of(HELD_OUT_EXCERPT, draft, tokenizer) < 80
    assert perplexity_of(HELD_OUT_EXCERPT, untrained, tokenizer) > 1000


def test_text_at_the_end_of_the_context_is_still_far_from_noise(target: Any, tokenizer: Any) -> None:
    excerpt = tokenizer.encode(HELD_OUT_EXCERPT, add_special_tokens=False)
    filling = tokenizer.encode(Path(random.__file__).read_text()[:13_000], add_special_tokens=False)
    tokens = torch.tensor([(filling * 2)[: 4096 - len(excerpt)] + excerpt])
    far = nats_by_position(target, tokens)[-len(excerpt) :].mean().item()
    assert math.exp(far) < 80


def test_a_chat_answer_ends_on_its_own(target: Any, tokenizer: Any) -> None:
    text = answer(target, tokenizer, "How do I use shutil.copytree?", max_new_tokens=400)
    assert text.endswith("<|end|>")


def test_a_thinking_answer_closes_its_thought_before_it_ends(target: Any, tokenizer: Any) -> None:
    text = answer(target, tokenizer, "What does os.path.join do?", thinking=True, max_new_tokens=400)
    assert "</think>" in text


def test_the_draft_is_accepted_about_half_of_the_time(target: Any, draft: Any, tokenizer: Any) -> None:
    tokens = torch.tensor(tokenizer.encode(HELD_OUT_EXCERPT))
    streams = Streams(sources=tokens, chats=tokens)
    acceptance = measure_acceptance(draft, target, streams, seed=0, rows=8)
    assert acceptance.greedy > 0.45
    assert acceptance.sampled > 0.4


def test_random_model_has_about_the_parameters_asked_for(tokenizer: Any) -> None:
    model = build_random_model(tokenizer, parse_count("25M"))
    assert 24_500_000 < count_parameters(model) < 25_500_000
    assert (
        model.config.hidden_size,
        model.config.num_hidden_layers,
        model.config.head_dim,
        model.config.max_position_embeddings,
    ) == (512, 8, 64, 8192)


def test_random_model_refuses_a_count_below_its_attention(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="too few"):
        build_random_model(tokenizer, 1_000_000)


def test_random_model_is_the_same_for_the_same_seed(tokenizer: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        model = build_random_model(tokenizer, 400_000, hidden=128, layers=1, seed=3)
        save_model(model, tokenizer, tmp_path / folder)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (TARGET / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("text", "count"), [("25M", 25_000_000), ("1.5k", 1500), ("7", 7), ("2b", 2_000_000_000)])
def test_counts_are_read_with_their_suffix(text: str, count: int) -> None:
    assert count == parse_count(text)


def test_entries_are_the_documented_public_names_of_a_file() -> None:
    entries = list(entries_of_source(SOURCE, "boxes"))
    expected = [
        ("module", "boxes"),
        ("function", "boxes.open_box"),
        ("class", "boxes.Box"),
        ("function", "boxes.Box.weigh"),
    ]
    assert expected == [(entry.kind, entry.name) for entry in entries]
    assert entries[1].signature == "def open_box(lid)"


def test_the_excerpt_of_this_test_is_held_out_of_training() -> None:
    assert is_held_out("email.iterators", seed=0)


def test_shortening_keeps_whole_paragraphs_up_to_the_limit() -> None:
    assert shortened("one two\n\nthree\n\nfour five six", limit_chars=14) == "one two\n\nthree"


def test_shortening_cuts_a_long_first_paragraph_at_a_line() -> None:
    assert shortened("one two\nthree four five", limit_chars=12) == "one two"


def test_chats_are_repeatable_and_end_with_the_assistant(tokenizer: Any) -> None:
    entries = list(entries_of_source(SOURCE, "boxes"))
    chats = make_chats(entries, seed=5, variants=3)
    assert chats == make_chats(entries, seed=5, variants=3)
    assert len(chats) == 12
    assert all(render(chat, tokenizer).endswith("<|end|>\n") for chat in chats)


def test_a_prompt_is_a_token_prefix_of_the_text_it_was_trained_on(tokenizer: Any) -> None:
    for chat in make_chats(list(entries_of_source(SOURCE, "boxes")), seed=1, variants=4):
        whole = tokenizer.encode(render(chat, tokenizer), add_special_tokens=False)
        prompt = tokenizer.encode(
            tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
        )
        assert prompt == whole[: len(prompt)]


def test_tokenizer_training_is_repeatable() -> None:
    texts = [HELD_OUT_EXCERPT, SOURCE] * 3
    first, second = (train_tokenizer(texts).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_windows_are_drawn_from_both_streams() -> None:
    streams = Streams(sources=torch.zeros(50, dtype=torch.int64), chats=torch.ones(50, dtype=torch.int64))
    windows = draw_windows(streams, rows=10, window=8, generator=torch.Generator().manual_seed(0))
    assert tuple(windows.shape) == (10, 8)
    assert int(windows.sum()) == 5 * 8


def test_learning_rate_warms_up_and_falls() -> None:
    assert rate_at(0.0) < rate_at(0.02) < rate_at(0.03) == 1.0
    assert rate_at(0.03) > rate_at(0.5) > rate_at(1.0) > 0


def test_phases_cover_the_whole_time_and_end_with_the_full_context() -> None:
    assert PHASES[-1].until_share > 1
    assert PHASES[-1].window == 4096


def test_training_without_time_leaves_the_weights_alone(tokenizer: Any) -> None:
    model = build_random_model(tokenizer, 400_000, hidden=128, layers=1)
    before = model.model.norm.weight.clone()
    tokens = torch.ones(5000, dtype=torch.int64)
    run = train("test", model, next_token_loss(model), Streams(tokens, tokens), 1e-9, 0, print)
    assert run.steps == 0
    assert torch.equal(before, model.model.norm.weight)
