import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from api.context import Context, load_context
from api.tokenizer import THREAD_OVER_CHARS, TemplateError, TextTooLong, Tokenizer
from common.settings import Settings
from tests.api.conftest import MODEL


async def test_long_texts_give_the_same_tokens_as_short_ones(context: Context) -> None:
    text = "import os\n" * THREAD_OVER_CHARS
    assert await context.tokenizer.encode(text, len(text)) == context.tokenizer.encode_now(text)


async def test_a_text_that_can_not_fit_is_not_tokenized(context: Context) -> None:
    with pytest.raises(TextTooLong):
        await context.tokenizer.encode("x" * 1_000_000, 4)


async def test_a_text_that_fits_exactly_is_never_too_long(context: Context) -> None:
    longest = max((context.tokenizer.decode([token]) for token in range(context.facts.vocab_size)), key=len)
    tokens = context.tokenizer.encode_now(longest * 5, add_special_tokens=False)
    assert await context.tokenizer.encode(longest * 5, len(tokens), add_special_tokens=False) == tokens


def test_facts_come_from_the_models_own_files(context: Context) -> None:
    facts = context.facts
    assert (facts.served_name, facts.max_model_len, facts.vocab_size) == ("target", 4096, 2048)
    assert facts.thinking_end == context.tokenizer.token_id("</think>")
    assert context.tokenizer.decode([facts.thinking_end or 0]) == "</think>"


def test_settings_name_the_model_and_bound_its_length() -> None:
    facts = load_context(Settings(model=str(MODEL), served_model_name="mine", max_model_len=100)).facts
    assert (facts.names, facts.max_model_len) == (("mine", str(MODEL)), 100)


def test_settings_name_the_tokens_around_thinking() -> None:
    facts = load_context(Settings(model=str(MODEL), thinking_start="<s>", thinking_end="</s>")).facts
    assert (facts.thinking_start, facts.thinking_end) == (0, 1)


def test_a_think_token_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="SLOS_THINKING_END"):
        load_context(Settings(model=str(MODEL), thinking_end="</reasoning>"))


def test_a_template_that_refuses_is_an_error_without_the_messages(context: Context) -> None:
    with pytest.raises(TemplateError) as caught:
        context.tokenizer.render([{"role": "a secret role", "content": "x"}])
    assert "secret" not in str(caught.value)


def test_a_model_without_a_template_has_no_chats() -> None:
    bare = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=RustTokenizer(models.WordLevel({"a": 0}, unk_token="a"))))
    assert bare.token_id("</think>") is None
    with pytest.raises(TemplateError):
        bare.render([{"role": "user", "content": "x"}])
