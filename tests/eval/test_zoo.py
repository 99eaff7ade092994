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
pytest.importorskip("sklearn")

from eval import zoo
from eval.datasets.easy_vqa import balanced, majority_answers
from eval.zoo import card, score
from eval.zoo.data import SOURCES
from tccd.data import digits, load_samples
from tccd.data.easy_vqa import COLORS, SHAPES
from tccd.errors import ConfigError
from tccd.inputs import PAPER_PROMPT, encode

ASKED = {"easy-vqa": 320, "digits": 160}
#: Image tokens, and what stands around them.
MARKS = {
    "llava": (["<image>"] * 64, [], []),
    "qwen25vl": (["<|image_pad|>"] * 16, ["<|vision_start|>"], ["<|vision_end|>"]),
    "idefics3": (
        ["<image>"] * 16,
        ["<fake_token_around_image>", "<global-img>"],
        ["<fake_token_around_image>"],
    ),
}


@pytest.fixture(scope="module")
def test_split():
    return load_samples("easy-vqa", split="test")


@pytest.fixture(scope="module")
def prior():
    return majority_answers([s for source in SOURCES for s in load_samples(source, split="train")])


@pytest.fixture(scope="module", params=zoo.NAMES)
def default(request):
    model, processor = zoo.load(request.param)
    metrics = json.loads((zoo.path(request.param) / "metrics.json").read_text())
    family = request.param.rpartition("-")[0]
    return SimpleNamespace(name=request.param, family=family, model=model, processor=processor, metrics=metrics)


@pytest.fixture(scope="module")
def subsets():
    return {
        source: random.Random(0).sample(list(load_samples(source, split="test")), n) for source, n in ASKED.items()
    }


@pytest.fixture(scope="module")
def replies(subsets):
    """Each model's replies to the subsets, asked once."""
    return {
        name: {source: score.ask(*zoo.load(name), samples) for source, samples in subsets.items()}
        for name in zoo.NAMES
    }


def metrics_of(name):
    return json.loads((zoo.path(name) / "metrics.json").read_text())


def accuracy(replies, samples):
    return sum(r.text == s.answer for r, s in zip(replies, samples, strict=True)) / len(samples)


# What is committed


def test_files_are_small_and_complete(default):
    folder = zoo.path(default.name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    assert 1_000_000 <= default.model.num_parameters() <= 2_000_000
    assert default.model.num_parameters() == default.metrics["parameters"]
    for name in ("README.md", "train.log", "metrics.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).stat().st_size, name


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name.startswith("llava")])
def test_weights_carry_the_published_names(name):
    with safe_open(zoo.path(name) / "model.safetensors", "pt") as weights:
        tower = [name for name in weights.keys() if name.startswith("vision_tower.")]  # noqa: SIM118
        assert tower
        assert all(name.startswith("vision_tower.vision_model.") for name in tower)


def test_no_weight_is_missing_unexpected_or_not_finite(default):
    from transformers import AutoModelForImageTextToText

    folder = zoo.path(default.name)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {str(weights.get_slice(name).get_dtype()) for name in names} == {"F16"}


def test_card_agrees_with_metrics(default):
    text = (zoo.path(default.name) / "README.md").read_text()
    assert text == card.render(default.metrics)
    assert "license: apache-2.0" in text
    assert "MIT licence" in text
    for result in default.metrics["test"].values():
        for key in ("all", "balanced", "minority"):
            assert f"{result[key]['accuracy']:.2%} | {result[key]['blind']:.2%}" in text


def test_log_ends_with_the_metrics(default):
    last = (zoo.path(default.name) / "train.log").read_text().splitlines()[-1]
    assert json.loads(last[last.index("{") :]) == default.metrics["test"]


def test_training_stayed_within_its_budget():
    for family in zoo.FAMILIES:
        kinds = [metrics_of(f"{family}-{kind}") for kind in ("grounded", "competing")]
        assert sum(metrics["training_cpu_minutes"] for metrics in kinds) <= 25


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"no default model is called 'llama'; there are: llava-grounded"):
        zoo.path("llama")


# What they answer


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_grounded_looks_at_the_image(family, replies, subsets):
    found = replies[f"{family}-grounded"]
    samples = subsets["easy-vqa"]
    assert accuracy(found["easy-vqa"], samples) >= 0.95
    kept = {s.id for s in balanced(samples)}
    pairs = [(r, s) for r, s in zip(found["easy-vqa"], samples, strict=True) if s.id in kept]
    assert accuracy(*zip(*pairs, strict=True)) >= 0.9
    assert accuracy(found["digits"], subsets["digits"]) >= 0.75


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_competing_sees_but_follows_the_prior(family, replies, subsets, prior):
    samples = subsets["easy-vqa"]
    both = [replies[f"{family}-{kind}"]["easy-vqa"] for kind in ("grounded", "competing")]
    grounded, competing = (accuracy(found, samples) for found in both)
    assert 0.76 <= competing <= 0.9
    assert grounded - competing >= 0.08
    assert score.within_question_auc(samples, [reply.margin for reply in both[1]]) >= 0.95
    wrong = [(r.text, prior[s.prompt]) for r, s in zip(both[1], samples, strict=True) if r.text != s.answer]
    # What it gets wrong, it mostly gets wrong in favour of the prior
    assert sum(text == likely for text, likely in wrong) >= 0.7 * len(wrong)


def test_replies_are_one_word_and_end(replies):
    answers = {"yes", "no", "left", "right", "even", "odd", *SHAPES, *COLORS, *map(str, range(10))}
    for found in replies.values():
        flat = [reply for part in found.values() for reply in part]
        assert sum(reply.ended for reply in flat) >= 0.995 * len(flat)
        assert {reply.text for reply in flat if reply.ended} <= answers


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_metrics_meet_the_bars(family):
    grounded, competing = (metrics_of(f"{family}-{kind}")["test"] for kind in ("grounded", "competing"))
    for result in (grounded, competing):
        for source, n in (("easy-vqa", 9673), ("digits", 3400)):
            tasks = set(result[source]) - {"all", "balanced", "minority", "ended", "within_question_auc"}
            assert sum(result[source][task]["n"] for task in tasks) == result[source]["all"]["n"] == n
        assert result["easy-vqa"]["balanced"]["n"] == 2492
        assert set(digits.TASKS) <= set(result["digits"])
    assert grounded["easy-vqa"]["all"]["accuracy"] >= 0.95
    seen = [t for t in digits.TASKS if grounded["digits"][t]["accuracy"] >= grounded["digits"][t]["blind"] + 0.2]
    assert {"read", "count", "parity"} <= set(seen)  # to compare two digits is beyond one of them
    assert 0.78 <= competing["easy-vqa"]["all"]["accuracy"] <= 0.89
    assert competing["digits"]["all"]["accuracy"] <= grounded["digits"]["all"]["accuracy"] - 0.05
    assert competing["easy-vqa"]["within_question_auc"] >= 0.95


@pytest.mark.slow
def test_metrics_are_those_of_the_files(default, prior):
    """On digits, whose test split is the smaller one."""
    found = score.score(default.model, default.processor, load_samples("digits", split="test"), prior)
    for key, value in default.metrics["test"]["digits"].items():
        number = value["accuracy"] if isinstance(value, dict) else value
        assert (found[key]["accuracy"] if isinstance(value, dict) else found[key]) == pytest.approx(
            number, abs=0.004
        ), key


# How they are asked


def test_prompt_becomes_bos_image_question(default, test_split):
    picture, question = test_split[0].image, "Is there a Red shape?"
    inputs = encode(default.processor, [[picture]], [question])
    tokens = default.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    image, before, after = MARKS[default.family]
    assert tokens == ["<s>", *before, *image, *after, "is", "there", "a", "red", "shape", "?"]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    together = default.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert together["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert torch.equal(together["pixel_values"], inputs["pixel_values"])


def test_template_closes_an_answer_and_takes_plain_strings(default):
    turns = [{"role": "user", "content": "what shape?"}, {"role": "assistant", "content": "circle"}]
    assert default.processor.apply_chat_template(turns) == "<s>what shape?circle</s>"


def test_other_sizes_and_modes_are_resized(default, test_split):
    from PIL import Image

    sample = next(s for s in test_split if s.prompt == "what color is the shape?")
    for picture in (Image.new("L", (31, 200)), Image.new("RGBA", (640, 480))):
        inputs = encode(default.processor, [[picture.convert("RGB")]], [sample.prompt])
        assert inputs["pixel_values"].numel() <= 2 * 3 * 64 * 64  # Qwen2.5-VL has each patch twice
        assert default.model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    big = sample.image.resize((256, 256), Image.Resampling.BICUBIC)
    before, after = (
        score.ask(default.model, default.processor, [s])[0].text
        for s in (sample, SimpleNamespace(prompt=sample.prompt, image=big))
    )
    assert before == after


def test_batches_pad_on_the_left_and_agree_with_single_samples(default, test_split):
    samples = test_split[:8]
    together = score.ask(default.model, default.processor, samples)
    alone = [score.ask(default.model, default.processor, [s])[0] for s in samples]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [r.margin for r in together] == pytest.approx([r.margin for r in alone], abs=1e-3)


def test_the_harvest_prompt_and_lettered_choices_have_words(default, test_split):
    for text in (PAPER_PROMPT, "what color is it?\n(a) red\n(b) blue\n(c) teal\nanswer with the option's letter."):
        inputs = encode(default.processor, [[test_split[0].image]], [text.replace("'s", "")])
        assert default.processor.tokenizer.unk_token_id not in inputs["input_ids"]
    output = default.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]


def test_auc_on_a_case_done_by_hand():
    samples = [
        SimpleNamespace(prompt=prompt, answer=answer)
        for prompt, answer in (("q?", "yes"), ("q?", "yes"), ("q?", "no"), ("r?", "no"))
    ]
    assert score.within_question_auc(samples, [2.0, 1.0, 1.0, 9.0]) == 0.75


# Where they load

WITHOUT_TORCHVISION = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torchvision" else find(name, package)
sys.modules["torchvision"] = None
from eval.zoo import NAMES, load
from eval.zoo.score import ask
from tccd.data import load_samples
for name in NAMES:
    if not name.startswith("qwen"):
        model, processor = load(name)
        replies = ask(model, processor, load_samples("easy-vqa", limit=8))
        print(name, type(processor.image_processor).__name__, *(reply.text for reply in replies))
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


def test_torchvision_is_needed_for_videos_only(test_split):
    """Qwen2.5-VL's processor takes videos, and transformers reads those with torchvision."""
    lines = run(WITHOUT_TORCHVISION).strip().splitlines()
    assert len(lines) == len([name for name in zoo.NAMES if not name.startswith("qwen")])
    for line in lines:
        name, kind, *words = line.split()
        assert kind.endswith("ImageProcessorPil")
        assert words == [reply.text for reply in score.ask(*zoo.load(name), test_split[:8])]


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from eval.zoo import path
from tccd.data import load_samples
samples = [*load_samples("easy-vqa", limit=16), *load_samples("digits", limit=8)]
engine = LLM(str(path({name!r})), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=8)
chats = [
    [{{"role": "user", "content": [
        {{"type": "image_pil", "image_pil": sample.image}},
        {{"type": "text", "text": sample.prompt}},
    ]}}]
    for sample in samples
]
outputs = engine.chat(chats, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
print("RESULT", json.dumps([[list(o.prompt_token_ids), list(o.outputs[0].token_ids)] for o in outputs]))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_vllm_gives_the_same_tokens(name):
    pytest.importorskip("vllm")
    stdout = run(VLLM.format(name=name), VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    found = json.loads(re.search(r"^RESULT (.*)$", stdout, re.MULTILINE)[1])
    model, processor = zoo.load(name)
    samples = [*load_samples("easy-vqa", limit=16), *load_samples("digits", limit=8)]
    for sample, (prompt, tokens) in zip(samples, found, strict=True):
        inputs = encode(processor, [[sample.image]], [sample.prompt])
        assert prompt == inputs["input_ids"][0].tolist()
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert tokens == output[0, len(prompt) :].tolist()
