"""Prompts that can't be asked are refused before the first is: with the processors of the default models."""

from functools import cache
from pathlib import Path

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tccd.data import Sample
from tccd.errors import ConfigError, DataError
from tccd.inputs import check_asked, check_context, check_samples, encode, vision_tokens

ZOO = Path(__file__).parents[2] / "eval" / "zoo"
FOLDERS = ("llava-competing", "idefics3-competing", "qwen25vl-competing")
TOKENS = {
    "llava-competing": {"<image>"},
    "idefics3-competing": {"<image>", "<fake_token_around_image>", "<global-img>"},
    "qwen25vl-competing": {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"},
}
WORDS = ("what", "color", "is", "the", "circle")


class Loaded:
    """A default model's processor, and what of the model is needed: its config."""

    def __init__(self, folder: str):
        self.folder = folder
        self.processor = hf.AutoProcessor.from_pretrained(ZOO / folder)
        self.config = hf.AutoConfig.from_pretrained(ZOO / folder)

    def check(self, *prompts, prompt=None):
        picture = Image.new("RGB", (8, 8))
        samples = [Sample(f"q{n}", "p", p, None, None, None, lambda: picture) for n, p in enumerate(prompts)]
        check_samples(self, self.processor, samples, prompt)


@cache
def llava():
    return Loaded(FOLDERS[0])


@pytest.fixture(scope="module", params=FOLDERS)
def loaded(request):
    return Loaded(request.param)


def test_the_tokens_of_pictures(loaded):
    assert set(vision_tokens(loaded.processor, loaded.config)) == TOKENS[loaded.folder]
    assert set(vision_tokens(loaded.processor)) == TOKENS[loaded.folder]


def test_a_token_inside_a_prompt_names_its_sample(loaded):
    for token in TOKENS[loaded.folder]:
        with pytest.raises(DataError) as raised:
            loaded.check("what color?", f"what is {token} here?", "what shape?")
        assert str(raised.value).startswith(f"sample q1: the prompt holds {token!r}, which stands for a picture")
        with pytest.raises(DataError, match=r"the prompt for every picture: the prompt holds"):
            loaded.check("what color?", prompt=f"{token}what shape?")
    loaded.check("is an image there?", "<|im_start|> image <b>", "2 < 3 > 1")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=300))
def test_what_is_asked_early_is_what_is_found_later(words):
    """The early check is a lower bound, and the exact one agrees with the tokens that there are."""
    here = llava()
    prompt = " ".join(words)
    batch = encode(here.processor, [[Image.new("RGB", (8, 8))]], [prompt])
    length = int(batch["attention_mask"].sum())
    limit = here.config.get_text_config().max_position_embeddings
    try:
        here.check(prompt)
        early = True
    except DataError:
        early = False
    if length <= limit:
        assert early
        check_context(here.config, batch, ["sample q0"])
    else:
        with pytest.raises(DataError, match=f"sample q0: the prompt has {length} tokens with its picture, but"):
            check_context(here.config, batch, ["sample q0"])
    assert early == (length - 63 <= limit)  # its picture is 64 tokens


def test_a_prompt_longer_than_the_context(loaded):
    long = "what " * 300
    message = (
        r"sample q1: the prompt has \d+ tokens without its picture, but the model reads at most 256; expected a"
    )
    with pytest.raises(DataError, match=message):
        loaded.check("what?", long)
    with pytest.raises(DataError, match="the prompt for every picture: the prompt has 3"):
        loaded.check("what?", prompt=long)


def test_the_longest_row_of_a_batch_is_named_and_padding_is_not_counted(loaded):
    rows = [[Image.new("RGB", (64, 64))]] * 2
    batch = encode(loaded.processor, rows, ["what?", "what " * 249])
    with pytest.raises(DataError, match=r"sample b: the prompt has \d+ tokens with its picture"):
        check_context(loaded.config, batch, ["sample a", "sample b"])
    check_context(loaded.config, {name: value[:1] for name, value in batch.items()}, ["sample a"])


def test_room_for_the_answer(loaded):
    check_asked(loaded.config, loaded.processor, {"what?": "--prompt 1"}, new_tokens=200)
    message = (
        "--prompt 1: the prompt has .* and the answer up to 256 more, .* a shorter prompt or a shorter answer"
    )
    with pytest.raises(ConfigError, match=message):
        check_asked(loaded.config, loaded.processor, {"what?": "--prompt 1"}, new_tokens=256)
