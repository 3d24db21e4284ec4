import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from api.context import Context
from api.detokenizer import Detokenizer
from api.tokenizer import Tokenizer
from tests.api.conftest import MODEL

_MODEL = Tokenizer.load(str(MODEL))


def pieces(tokenizer: Tokenizer, tokens: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [])
    return [*(detokenizer.feed(token) for token in tokens), detokenizer.flush()]


@given(st.text(max_size=40))
def test_pieces_join_to_the_text_for_any_text(text: str) -> None:
    tokens = list(_MODEL.encode_now(text, add_special_tokens=False))
    assert "".join(pieces(_MODEL, tokens)) == _MODEL.decode(tokens)


@given(st.lists(st.integers(0, 2047), max_size=24))
def test_pieces_join_to_the_decoded_whole_for_any_tokens(tokens: list[int]) -> None:
    assert "".join(pieces(_MODEL, tokens)) == _MODEL.decode(tokens)


def test_no_piece_ends_inside_of_a_character(context: Context) -> None:
    tokens = list(context.tokenizer.encode_now("né 🙂 日本", add_special_tokens=False))
    assert len(tokens) > len("né 🙂 日本")
    assert not any("\ufffd" in piece for piece in pieces(context.tokenizer, tokens))


def test_special_tokens_have_no_text(context: Context) -> None:
    end = 1
    tokens = [*context.tokenizer.encode_now("a b", add_special_tokens=False), end]
    assert "".join(pieces(context.tokenizer, [end, *tokens])) == "a b"


def test_an_endless_run_of_broken_bytes_is_not_held_back_for_ever(context: Context) -> None:
    broken = next(token for token in range(context.facts.vocab_size) if context.tokenizer.decode([token]) == "\ufffd")
    assert "".join(pieces(context.tokenizer, [broken] * 100)[:-1])


@pytest.fixture
def sentence_pieces() -> Tokenizer:
    """Words carry their space in front, and the first space of a text is dropped, as in Llama 2."""
    vocabulary = {"<s>": 0, "\u2581the": 1, "\u2581cat": 2, "s": 3, "<unk>": 4}
    rust = RustTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rust.decoder = decoders.Metaspace()
    rust.add_special_tokens(["<s>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust))


def test_the_space_before_the_first_word_is_kept_when_a_prompt_stands_before_it(sentence_pieces: Tokenizer) -> None:
    assert "".join(pieces(sentence_pieces, [2, 3], prompt=[0, 1])) == " cats"


def test_a_space_is_not_lost_after_a_special_token(sentence_pieces: Tokenizer) -> None:
    assert "".join(pieces(sentence_pieces, [1, 0, 2])) == "the cat"
