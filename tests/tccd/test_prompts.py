"""Prompts that can't be asked are refused before the first is: with the processors of the default models."""

import math
from functools import cache, partial
from pathlib import Path

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.zoo import load
from tccd.centroids.harvest import harvest
from tccd.data import Sample
from tccd.errors import ConfigError, DataError
from tccd.inputs import (
    _ROOMY,
    Shown,
    _extremes,
    check_asked,
    check_context,
    check_samples,
    check_shown,
    encode,
    vision_tokens,
)

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

    def check(self, *prompts, prompt=None, size=(64, 64)):
        check_samples(self, self.processor, questions(*prompts, size=size), prompt)


def questions(*prompts, size=(64, 64)):
    """The first has a picture of this size, the others one of 64 x 64."""
    sizes = [size] + [(64, 64)] * (len(prompts) - 1)
    pictures = [partial(Image.new, "RGB", size) for size in sizes]
    asked = enumerate(zip(prompts, pictures, strict=True))
    return [Sample(f"q{n}", f"p{n}", prompt, None, None, None, picture) for n, (prompt, picture) in asked]


cached = cache(Loaded)


@pytest.fixture(scope="module", params=FOLDERS)
def loaded(request):
    return cached(request.param)


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


def width(loaded, prompt, *sizes):
    batch = encode(loaded.processor, [[Image.new("RGB", size) for size in sizes]], [prompt])
    return int(batch["attention_mask"].sum())


SIDES = st.integers(2, 300)


@settings(max_examples=120)
@given(
    folder=st.sampled_from(FOLDERS),
    count=st.integers(1, 300),
    sizes=st.lists(st.tuples(SIDES, SIDES), max_size=3).map(tuple),
    answer=st.integers(0, 64),
)
def test_what_is_asked_early_is_what_is_found_later(folder, count, sizes, answer):
    """The check before the first forward finds the length that there is, whatever the pictures' sizes."""
    here = cached(folder)
    prompt = " ".join(WORDS[i % len(WORDS)] for i in range(count))
    length = width(here, prompt, *sizes)
    shown = [Shown("sample q0", "what?", ((8, 8),)), Shown("sample q1", prompt, sizes)]
    limit = here.config.get_text_config().max_position_embeddings
    if length + answer <= limit:
        check_shown(here.config, here.processor, shown, answer)
        return
    kind = DataError if length > limit else ConfigError
    with pytest.raises(kind, match=rf"^sample q1: the prompt has {length} tokens with its picture"):
        check_shown(here.config, here.processor, shown, answer)


@pytest.mark.parametrize("first", [(8, 8), (64, 64)])
def test_the_second_of_two_samples_is_too_long_with_its_picture(loaded, first):
    """Refused before the first batch, and named; one token fewer is not."""
    fits = 256 - width(loaded, "", (64, 64))
    loaded.check("what?", "what " * fits, size=first)
    with pytest.raises(DataError, match="sample q1: the prompt has 257 tokens with its picture, but the model"):
        loaded.check("what?", "what " * (fits + 1), size=(64, 64))
    with pytest.raises(DataError, match="sample q0: the prompt has 257 tokens with its picture, but the model"):
        loaded.check("a?", "b?", prompt="what " * (fits + 1))


@pytest.mark.parametrize("name", ["llava-competing", "qwen25vl-competing"])
def test_no_forward_runs_before_a_prompt_that_is_too_long_with_its_picture(name, tmp_path):
    model, processor = load(name)
    samples = questions("what?", "what " * (257 - width(cached(name), "", (64, 64))))
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with pytest.raises(DataError, match="sample q1: the prompt has 257 tokens with its picture"):
            harvest(model, processor, samples, {"text": 1}, tmp_path, prompt=None, batch_size=1)
        assert not forwards
        harvest(model, processor, samples[:1], {"text": 1}, tmp_path, prompt=None, batch_size=1)
        assert forwards
    finally:
        hook.remove()


class Counted:
    """A processor that counts the prompts it encodes with pictures."""

    def __init__(self, processor):
        self.processor, self.sizes = processor, []

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, text, images, **options):
        self.sizes += [picture.size for row in images for picture in row]
        return self.processor(text=text, images=images, **options)


def test_each_size_is_encoded_once_and_few_where_there_is_room():
    here = cached("idefics3-competing")
    sizes = [(side, 3 * side) for side in range(8, 40)]
    shown = [Shown(f"sample {i}", "what?", (size,)) for i, size in enumerate(sizes * 3)]
    counted = Counted(here.processor)
    check_shown(here.config, counted, shown)
    assert len(counted.sizes) == len(set(counted.sizes)) <= 9
    counted = Counted(here.processor)
    check_shown(here.config, counted, shown, new_tokens=200)
    assert sorted(counted.sizes) == sizes


@cache
def counts():
    """How many tokens a picture of a width and a height takes, for large models' ways of cutting it up."""
    qwen, internvl = hf.Qwen2VLImageProcessorPil(), hf.GotOcr2ImageProcessorPil()
    idefics = hf.Idefics3ImageProcessorPil(size={"longest_edge": 1456}, max_image_size={"longest_edge": 364})
    cut = {"crop_to_patches": True, "max_patches": 12}

    def pixtral(width, height, longest=1024, patch=16):
        scale = max(1, max(width, height) / longest)
        return math.ceil(width / scale / patch) * math.ceil(height / scale / patch)

    return (
        lambda width, height: qwen.get_number_of_image_patches(height, width, {}),
        lambda width, height: idefics.get_number_of_image_patches(height, width, {})[0],
        lambda width, height: internvl.get_number_of_image_patches(height, width, cut),
        pixtral,
    )


@given(
    count=st.integers(0, 3),
    sizes=st.lists(
        st.tuples(st.integers(2, 4000), st.integers(2, 4000)).filter(lambda s: max(s) <= 150 * min(s)),
        min_size=1,
        max_size=30,
    ),
)
def test_no_picture_takes_several_times_the_tokens_of_the_extreme_ones(count, sizes):
    tokens = {(size,): counts()[count](*size) for size in sizes}
    most = max(tokens[extreme] for extreme in _extremes(tokens))
    assert max(tokens.values()) <= _ROOMY * most


def test_a_size_that_the_processor_fails_at_is_named():
    here = cached("qwen25vl-competing")
    shown = [Shown("--prompt 1", "what?", ((8, 8),)), Shown("--prompt 2", "what?", ((4000, 2),))]
    message = r"--prompt 2: Qwen2_5_VLProcessor fails at a picture of 4000 x 2 pixels \(ValueError: .*expected one"
    with pytest.raises(DataError, match=message):
        check_shown(here.config, here.processor, shown)


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
