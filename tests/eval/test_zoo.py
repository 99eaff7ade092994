"""The default models are what their cards say: small, loadable as they are, one grounded and one not."""

import json
import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("easy_vqa")

from eval import zoo
from eval.zoo import card, score
from eval.zoo.build import CHAT_TEMPLATE, tokenizer
from eval.zoo.data import COLORS, IGNORED, SHAPES, Item, Split, attributes, pack
from tccd.errors import ConfigError

HARVEST_PROMPT = "Describe what you see in this image.\nAnswer:"
SUBSET = 600


@pytest.fixture(scope="module")
def test_split():
    return Split.load("test")


@pytest.fixture(scope="module")
def train_split():
    return Split.load("train")


@pytest.fixture(scope="module", params=zoo.NAMES)
def default(request):
    model, processor = zoo.load(request.param)
    metrics = json.loads((zoo.path(request.param) / "metrics.json").read_text())
    return SimpleNamespace(name=request.param, model=model, processor=processor, metrics=metrics)


@pytest.fixture(scope="module")
def subset(test_split):
    return random.Random(0).sample(test_split.items, SUBSET)


@pytest.fixture(scope="module")
def replies(test_split, subset):
    """Each model's replies to the subset, asked once."""
    return {name: score.ask(*zoo.load(name), subset, test_split.images) for name in zoo.NAMES}


def accuracy(replies, items):
    return sum(r.text == i.answer for r, i in zip(replies, items, strict=True)) / len(items)


# What is committed


def test_files_are_small_and_complete(default):
    folder = zoo.path(default.name)
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    assert 1_000_000 <= default.model.num_parameters() <= 2_000_000
    assert default.model.num_parameters() == default.metrics["parameters"]
    for name in ("README.md", "train.log", "metrics.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).stat().st_size, name


def test_weights_carry_the_published_names(default):
    with safe_open(zoo.path(default.name) / "model.safetensors", "pt") as weights:
        tower = [name for name in weights.keys() if name.startswith("vision_tower.")]  # noqa: SIM118
        assert tower
        assert all(name.startswith("vision_tower.vision_model.") for name in tower)
        assert {str(weights.get_slice(name).get_dtype()) for name in tower} == {"F16"}


def test_no_weight_is_missing_unexpected_or_not_finite(default):
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(zoo.path(default.name), output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_card_agrees_with_metrics(default):
    text = (zoo.path(default.name) / "README.md").read_text()
    assert text == card.render(default.metrics)
    assert "license: apache-2.0" in text
    assert "MIT licence" in text
    for key in ("all", "balanced", "minority"):
        assert f"{default.metrics['test'][key]['accuracy']:.2%}" in text


def test_log_ends_with_the_metrics(default):
    last = (zoo.path(default.name) / "train.log").read_text().splitlines()[-1]
    assert json.loads(last[last.index("{") :]) == default.metrics["test"]


def test_training_stayed_within_its_budget():
    for name in zoo.NAMES:
        assert json.loads((zoo.path(name) / "metrics.json").read_text())["training_cpu_minutes"] <= 20


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"no default model is called 'llama'; there are: llava-grounded"):
        zoo.path("llama")


# What they answer


def test_grounded_looks_at_the_image(replies, subset):
    assert accuracy(replies["llava-grounded"], subset) >= 0.97
    kept = score.balanced(subset)
    chosen = replies["llava-grounded"]
    assert accuracy([chosen[i] for i in kept], [subset[i] for i in kept]) >= 0.92


def test_competing_sees_but_follows_the_prior(replies, subset, train_split):
    grounded, competing = (accuracy(replies[name], subset) for name in zoo.NAMES)
    assert 0.78 <= competing <= 0.86
    assert grounded - competing >= 0.12
    margins = [reply.margin for reply in replies["llava-competing"]]
    assert score.within_question_auc(subset, margins) >= 0.95
    prior = train_split.prior()
    wrong = [
        (reply.text, prior[item.question])
        for reply, item in zip(replies["llava-competing"], subset, strict=True)
        if reply.text != item.answer
    ]
    # What it gets wrong, it mostly gets wrong in favour of the prior (85 % when it was trained)
    assert sum(text == likely for text, likely in wrong) >= 0.75 * len(wrong)


def test_replies_are_one_word_and_end(replies):
    for chosen in replies.values():
        assert all(reply.ended for reply in chosen)
        assert {reply.text for reply in chosen} <= {"yes", "no", *SHAPES, *COLORS}


def test_metrics_meet_the_bars():
    grounded, competing = (json.loads((zoo.path(name) / "metrics.json").read_text())["test"] for name in zoo.NAMES)
    assert grounded["all"]["n"] == competing["all"]["n"] == 9673
    assert grounded["all"]["accuracy"] >= 0.97
    assert grounded["balanced"]["n"] == 2492
    assert grounded["balanced"]["accuracy"] >= 0.92
    assert 0.81 <= competing["all"]["accuracy"] <= 0.85
    assert 0.53 <= competing["balanced"]["accuracy"] <= 0.64
    assert competing["within_question_auc"] >= 0.95
    for result in (grounded, competing):
        assert sum(result[task]["n"] for task in ("shape", "color", "presence", "absence")) == 9673


@pytest.mark.slow
def test_metrics_are_those_of_the_files(default, test_split, train_split):
    found = score.score(default.model, default.processor, test_split, train_split.prior())
    for key, value in default.metrics["test"].items():
        number = value["accuracy"] if isinstance(value, dict) else value
        assert (found[key]["accuracy"] if isinstance(value, dict) else found[key]) == pytest.approx(
            number, abs=0.002
        ), key


# How they are asked


def test_prompt_becomes_bos_image_question(default):
    text = score.prompt(default.processor, "Is there a Red shape?")
    assert text == "<s><image>Is there a Red shape?"
    picture = Split.load("test").images[0]
    inputs = default.processor(text=text, images=picture, return_tensors="pt")
    tokens = default.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert tokens == ["<s>", *["<image>"] * 64, "is", "there", "a", "red", "shape", "?"]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Is there a Red shape?"}]
    together = default.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert together["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert torch.equal(together["pixel_values"], inputs["pixel_values"])


def test_template_closes_an_answer_and_takes_plain_strings(default):
    turns = [{"role": "user", "content": "what shape?"}, {"role": "assistant", "content": "circle"}]
    assert default.processor.apply_chat_template(turns) == "<s>what shape?circle</s>"
    assert default.processor.chat_template == CHAT_TEMPLATE


def test_other_sizes_and_modes_are_resized(default, test_split):
    from PIL import Image

    text = score.prompt(default.processor, "what color is the shape?")
    for picture in (Image.new("L", (31, 200)), Image.new("RGBA", (640, 480))):
        inputs = default.processor(text=text, images=picture, return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    item = next(item for item in test_split.items if item.question == "what color is the shape?")
    big = {item.image: test_split.images[item.image].resize((256, 256), Image.Resampling.BICUBIC)}
    before, after = (
        score.ask(default.model, default.processor, [item], images)[0].text for images in (test_split.images, big)
    )
    assert before == after


def test_batches_pad_on_the_left_and_agree_with_single_items(default, test_split):
    items = test_split.items[:8]
    together = score.ask(default.model, default.processor, items, test_split.images)
    alone = [score.ask(default.model, default.processor, [item], test_split.images)[0] for item in items]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [r.margin for r in together] == pytest.approx([r.margin for r in alone], abs=1e-3)


def test_the_harvest_prompt_has_words(default, test_split):
    text = score.prompt(default.processor, HARVEST_PROMPT)
    inputs = default.processor(text=text, images=test_split.images[0], return_tensors="pt")
    assert default.processor.tokenizer.unk_token_id not in inputs["input_ids"]
    output = default.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]


def test_tokenizer_knows_the_data_set_and_survives_the_rest(train_split, test_split):
    words = tokenizer()
    for item in [*train_split.items, *test_split.items]:
        assert words.unk_token_id not in words(item.question)["input_ids"]
        assert len(words(item.answer)["input_ids"]) == 1
    assert words.tokenize("Foo, a BLUE-circle?\n") == ["<unk>", "<unk>", "a", "blue", "<unk>", "circle", "?"]
    assert words("")["input_ids"] == []
    assert words.padding_side == "left"


# How they were made


def test_attributes_implied_by_questions():
    def of(*pairs):
        shape, color = attributes([Item(question, answer, 0) for question, answer in pairs])
        return (SHAPES[shape] if shape >= 0 else None, COLORS[color] if color >= 0 else None)

    assert of(("what is the red shape?", "circle")) == ("circle", "red")
    assert of(("what color is the circle?", "teal")) == ("circle", "teal")
    assert of(("is there a circle?", "no"), ("is no triangle present?", "yes")) == ("rectangle", None)
    assert of(("does the image not contain a blue shape?", "no")) == (None, "blue")
    assert of(("is there a blue shape?", "no")) == (None, None)


def test_attributes_never_contradict(train_split):
    found = [attributes(items) for items in train_split.by_image().values()]
    assert sum(shape == IGNORED for shape, _ in found) < 0.1 * len(found)
    assert sum(color == IGNORED for _, color in found) < 0.1 * len(found)


def test_packed_questions_are_blind_to_each_other(default, test_split):
    items = [item for item in test_split.items if item.image == test_split.items[0].image][:3]
    words = default.processor.tokenizer
    picture = test_split.images[items[0].image]
    prefix = default.processor(text="<s><image>", images=picture)["input_ids"][0]
    rows = [(words(i.question)["input_ids"], words.convert_tokens_to_ids(i.answer)) for i in items]
    batch = pack(prefix, [rows, rows[:1]], words.eos_token_id, words.pad_token_id)
    labels = batch.pop("labels")
    pixels = default.processor(text="<image>", images=picture, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        packed = default.model(pixel_values=pixels.repeat(2, 1, 1, 1), **batch).logits
        answers = (labels != IGNORED) & (labels != words.eos_token_id)
        assert answers.sum() == 4
        for item, logits in zip([*items, items[0]], packed[answers], strict=True):
            single = default.processor(
                text=score.prompt(default.processor, item.question), images=picture, return_tensors="pt"
            )
            torch.testing.assert_close(default.model(**single).logits[0, -1], logits, atol=1e-3, rtol=1e-3)
    assert labels[answers].tolist() == [answer for _, answer in [*rows, rows[0]]]
    assert (labels == words.eos_token_id).sum() == 4


def test_balanced_and_auc_on_a_case_done_by_hand():
    items = [Item("q?", "yes", 0), Item("q?", "yes", 1), Item("q?", "no", 2), Item("r?", "no", 3)]
    assert score.balanced(items) == [0, 2]
    assert score.within_question_auc(items, [2.0, 1.0, 1.0, 9.0]) == 0.75


def test_no_training_image_is_in_the_test_split_card_claims(train_split, test_split):
    train = {image.tobytes() for image in train_split.images.values()}
    assert not any(image.tobytes() in train for image in test_split.images.values())


# Where they load

WITHOUT_TORCHVISION = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torchvision" else find(name, package)
sys.modules["torchvision"] = None
from eval.zoo import NAMES, load
from eval.zoo.data import Split
from eval.zoo.score import ask
split = Split.load("test")
for name in NAMES:
    model, processor = load(name)
    replies = ask(model, processor, split.items[:8], split.images)
    print(type(processor.image_processor).__name__, *(reply.text for reply in replies))
"""


def run(script, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        cwd=zoo.path(zoo.NAMES[0]).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_torchvision_is_not_needed(test_split):
    lines = run(WITHOUT_TORCHVISION).strip().splitlines()
    for name, line in zip(zoo.NAMES, lines, strict=True):
        kind, *words = line.split()
        assert kind == "CLIPImageProcessorPil"
        replies = score.ask(*zoo.load(name), test_split.items[:8], test_split.images)
        assert words == [reply.text for reply in replies]


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from eval.zoo import path
from eval.zoo.data import Split
split = Split.load("test")
items = split.items[:24]
engine = LLM(str(path({name!r})), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=8)
chats = [
    [{{"role": "user", "content": [
        {{"type": "image_pil", "image_pil": split.images[item.image]}},
        {{"type": "text", "text": item.question}},
    ]}}]
    for item in items
]
outputs = engine.chat(chats, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
print("RESULT", json.dumps([[list(o.prompt_token_ids), list(o.outputs[0].token_ids)] for o in outputs]))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_vllm_gives_the_same_tokens(name, test_split):
    pytest.importorskip("vllm")
    stdout = run(VLLM.format(name=name), VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    found = json.loads(re.search(r"^RESULT (.*)$", stdout, re.MULTILINE)[1])
    model, processor = zoo.load(name)
    for item, (prompt, tokens) in zip(test_split.items, found, strict=False):
        inputs = processor(
            text=score.prompt(processor, item.question),
            images=test_split.images[item.image],
            return_tensors="pt",
        )
        assert prompt == inputs["input_ids"][0].tolist()
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert tokens == output[0, len(prompt) :].tolist()
    assert len(found) == 24
