"""Prompts and batches through real processors, built here without a hub."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from tccd.errors import DataError
from tccd.inputs import PAPER_PROMPT, check_context, check_processor, encode, format_prompt, vision_tokens
from tccd.modality import modality_map, vision_token_ids

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<boi>", "<eoi>", "<fake_token_around_image>")
SPECIAL += ("<end_of_utterance>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)))
WORDS = ("what", "is", "this", "a", "cat", "?", "USER", ":", "ASSISTANT")
IDS = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
PAD, BOS, IMAGE = IDS["<pad>"], IDS["<s>"], IDS["<image>"]
TOKENS_AN_IMAGE = 4
PIXELS = {"height": 16, "width": 16}

ZOO = sorted((Path(__file__).parents[2] / "eval" / "zoo").glob("*/processor_config.json"))

PROCESSORS = ("llava", "idefics3", "gemma3")
TEMPLATES = ("none", "with bos", "without bos")  # llava-1.5's own template has none: the tokenizer adds it


def tokenizer(**named: str):
    core = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        **special,
        additional_special_tokens=list(SPECIAL[4:]),
        **({"extra_special_tokens": named} if named else {}),
    )


def template(kind: str, image_token: str) -> str | None:
    if kind == "none":
        return None
    return (
        ("{{ bos_token }}" if kind == "with bos" else "")
        + "{% for m in messages %}USER: {% for part in m['content'] %}"
        + "{{ '"
        + image_token
        + "' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
        + "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


def processor(name: str, kind: str):
    if name == "llava":
        images = hf.CLIPImageProcessorPil(size=PIXELS, crop_size=PIXELS)
        return hf.LlavaProcessor(
            images,
            tokenizer(),
            patch_size=8,
            vision_feature_select_strategy="full",
            chat_template=template(kind, "<image>"),
        )
    if name == "idefics3":
        sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
        images = hf.Idefics3ImageProcessorPil(**sizes, do_image_splitting=False)
        chat = template(kind, "<image>")
        return hf.Idefics3Processor(images, tokenizer(), image_seq_len=TOKENS_AN_IMAGE, chat_template=chat)
    words = tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    images, chat = hf.Gemma3ImageProcessorPil(size=PIXELS), template(kind, "<boi>")
    return hf.Gemma3Processor(images, words, image_seq_length=TOKENS_AN_IMAGE, chat_template=chat)


def picture(shade: int = 200):
    return Image.new("RGB", (20, 30), (shade, 10, 10))


every_processor = pytest.mark.parametrize(
    ("name", "kind"), list(itertools.product(PROCESSORS, TEMPLATES)), ids=lambda v: v.replace(" ", "-")
)


def assert_rows(batch, images: list[int], questions: list[str]) -> None:
    """Each row is padded on the left, starts with one bos, has its images and then its question."""
    for ids, mask, count, question in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), images, questions, strict=True
    ):
        padding = mask.index(1)
        assert mask == [0] * padding + [1] * (len(mask) - padding)
        assert set(ids[:padding]) <= {PAD}
        real = ids[padding:]
        assert PAD not in real
        assert real.count(BOS) == 1
        assert real[0] == BOS
        assert real.count(IMAGE) == count * TOKENS_AN_IMAGE
        words = [IDS[word] for word in question.split()]
        after = real[max((i for i, x in enumerate(real) if x == IMAGE), default=0) + 1 :]
        assert any(after[i : i + len(words)] == words for i in range(len(after)))


@every_processor
@pytest.mark.parametrize(
    ("images", "questions"),
    [
        ([1], ["what is this ?"]),
        ([1, 1], ["what is this ?", "cat ?"]),
        ([1, 2], ["what", "a cat ?"]),
        ([0, 0], ["what is this ?", "cat ?"]),
        ([1, 0, 2], ["what is", "a cat ?", "a"]),
        ([0, 1], ["what is", "a cat ?"]),
    ],
    ids=str,
)
def test_encode(name, kind, images, questions):
    rows = [[picture()] * count for count in images]
    batch = encode(processor(name, kind), rows, questions)
    assert_rows(batch, images, questions)
    assert ("pixel_values" in batch) == (sum(images) > 0)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_is_its_rows(name):
    made = processor(name, "with bos")
    rows, questions = [[picture(10)], [picture(250)]], ["what is this ?", "a cat"]
    batch = encode(made, rows, questions)
    for i in range(2):
        single = encode(made, rows[i : i + 1], questions[i : i + 1])
        length = single["input_ids"].shape[1]
        assert batch["input_ids"][i, -length:].tolist() == single["input_ids"][0].tolist()
        assert batch["pixel_values"][i].equal(single["pixel_values"][0])


@pytest.mark.parametrize("name", PROCESSORS)
def test_any_sequence_of_images_will_do(name):
    made = processor(name, "with bos")
    lists, tuples = encode(made, [[picture()]], ["cat"]), encode(made, ((picture(),),), ("cat",))
    assert lists["input_ids"].equal(tuples["input_ids"])
    assert lists["pixel_values"].equal(tuples["pixel_values"])


@pytest.mark.parametrize(("rows", "prompts"), [([[]], []), ([], ["cat"]), ([[], []], ["cat"])])
def test_images_and_prompts_that_differ_in_number_are_refused(rows, prompts):
    with pytest.raises(DataError, match=f"{len(rows)} rows of images but {len(prompts)} prompts"):
        encode(processor("llava", "with bos"), rows, prompts)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_chat_template_formats_the_prompt(count):
    made = processor("llava", "with bos")
    assert format_prompt(made, "a cat ?", count) == "<s>USER: " + "<image>" * count + "a cat ? ASSISTANT:"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_a_template_the_image_token_stands_before_the_prompt(count):
    assert format_prompt(processor("llava", "none"), PAPER_PROMPT, count) == "<image>" * count + PAPER_PROMPT
    assert format_prompt(processor("gemma3", "none"), "cat", count) == "<boi>" * count + "cat"


def test_a_processor_that_does_not_say_where_the_image_goes_is_refused():
    bare = SimpleNamespace(chat_template=None)
    with pytest.raises(
        DataError, match=r"neither a chat template nor an image_token.*set processor.chat_template"
    ):
        format_prompt(bare, "cat")
    assert format_prompt(bare, "cat", num_images=0) == "cat"


def test_the_prompt_of_the_published_fit():
    assert PAPER_PROMPT == "Describe what you see in this image.\nAnswer:"


def test_the_tokens_of_pictures_are_found_wherever_a_processor_names_them():
    """Gemma3's stand in its tokenizer and its processor under names of their own."""
    assert vision_tokens(processor("gemma3", "with bos")) == ("<boi>", "<eoi>", "<image>")
    config = SimpleNamespace(vision_start_token_id=IDS["<end_of_utterance>"], image_token_id=-1, eos_token_id=2)
    assert vision_tokens(processor("llava", "none"), config) == (
        *("<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"),
    )


def test_a_model_that_names_no_context_has_no_limit():
    config = SimpleNamespace(get_text_config=SimpleNamespace)
    check_context(config, {"input_ids": torch.zeros(1, 100_000)}, ["sample 1"], new_tokens=10**9)


@pytest.mark.parametrize("folder", [file.parent for file in ZOO], ids=lambda folder: folder.name)
def test_the_processors_of_the_default_models(folder):
    made, config = hf.AutoProcessor.from_pretrained(folder), hf.AutoConfig.from_pretrained(folder)
    batch = encode(made, [[picture()], [], [picture()] * 2], ["what color is the circle?", "no", "a"])
    vision = modality_map(batch["input_ids"], vision_token_ids(config), batch["attention_mask"]).vision
    one = {"llava": 64, "qwen2_5_vl": 20, "idefics3": 16}[
        config.model_type
    ]  # Qwen2.5-VL keeps the picture's shape
    assert vision.sum(-1).tolist() == [one, 0, 2 * one]
    assert (batch["input_ids"] == made.tokenizer.bos_token_id).sum(-1).tolist() == [1, 1, 1]
    assert batch["attention_mask"][:, -1].all()


@pytest.mark.parametrize("folder", [file.parent for file in ZOO], ids=lambda folder: folder.name)
def test_processors_that_can_ask_about_a_picture(folder):
    processor, config = hf.AutoProcessor.from_pretrained(folder), hf.AutoConfig.from_pretrained(folder)
    check_processor(processor, config)
    with pytest.raises(DataError, match="no processor of pictures"):
        check_processor(processor.tokenizer, config)
    processor.chat_template = "{{ raise_exception('not with me') }}"
    with pytest.raises(DataError, match=r"not with me.*chat_template\.jinja"):
        check_processor(processor, config)
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(DataError, match=r"processor_config\.json"):
        check_processor(processor, config)


def test_a_config_that_names_another_vision_token():
    folder = next(file.parent for file in ZOO if "llava" in file.parent.name)
    config = hf.AutoConfig.from_pretrained(folder)
    config.image_token_index = 10**6
    with pytest.raises(DataError, match=r"vision tokens \[1000000\].*config.json"):
        check_processor(hf.AutoProcessor.from_pretrained(folder), config)
