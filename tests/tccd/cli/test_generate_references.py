"""`tccd generate` with every reference: it decodes as Python does, and refuses what does not fit together."""

import json

import pytest
from PIL import Image

from probes.references import KINDS, parse
from tccd import Contrast
from tccd.centroids.bank import CentroidBank
from tccd.cli.references import NAMES, Wanted, parse_layer, parse_references
from tccd.decoding.references import (
    blank_image,
    early_exit,
    mean_vision,
    no_vision,
    noised_image,
    other_prompt,
    text_centroid,
    vision_centroid,
)
from tccd.errors import ConfigError
from tccd.inputs import encode
from tests.tccd.cli.common import ok, run

PROMPTS = ["what shape is in the image?", "is there a red shape?"]
WORDS = "look away and say: {prompt}"


@pytest.fixture(scope="module")
def bank(bank_file):
    return CentroidBank.load(bank_file)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A picture with something in it, and one to put in its place."""
    folder = tmp_path_factory.mktemp("shown")
    for name, color in (("seen.png", "red"), ("other.png", "green")):
        picture = Image.new("RGB", (64, 64), "black")
        picture.paste(color, (8, 8, 40, 40))
        picture.save(folder / name)
    return folder


def generate(model_dir, shown, *args, prompts=PROMPTS, **options):
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    fixed = ("--model", model_dir, "--image", shown / "seen.png", "--max-new-tokens", 4, "--json")
    return run("generate", *fixed, *asked, *given, *args)


def texts(loaded, tokens, inputs):
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]


#: What is typed -> the references, of (processor, images, prompts, inputs, bank, folder).
CASES = {
    "no-vision": ({}, lambda p, i, w, x, b, f: no_vision()),
    "text-centroid": (
        {"layer": 1, "alpha_interp": 0.1},
        lambda p, i, w, x, b, f: text_centroid(b, 1, 0.1),
    ),
    "vision-centroid": ({}, lambda p, i, w, x, b, f: vision_centroid(b, 2)),
    "mean-vision": ({}, lambda p, i, w, x, b, f: mean_vision(b)),
    "blank-image": ({}, lambda p, i, w, x, b, f: blank_image(p, i, w)),
    "blank-image=#ff0000": ({}, lambda p, i, w, x, b, f: blank_image(p, i, w, (255, 0, 0))),
    "blank-image=FILE": ({}, lambda p, i, w, x, b, f: blank_image(p, i, w, Image.open(f / "other.png"))),
    "noised-image": ({}, lambda p, i, w, x, b, f: noised_image(x)),
    "noised-image=300": ({"seed": 7}, lambda p, i, w, x, b, f: noised_image(x, 300, 7)),
    "prompt": ({"other_prompt": WORDS}, lambda p, i, w, x, b, f: other_prompt(p, [WORDS[:19] + q for q in w], i)),
    "early-exit": ({}, lambda p, i, w, x, b, f: early_exit()),
    "early-exit=high": ({}, lambda p, i, w, x, b, f: early_exit("high")),
    "early-exit=2": ({}, lambda p, i, w, x, b, f: early_exit(2)),
    "early-exit=1-3": ({}, lambda p, i, w, x, b, f: early_exit((1, 2, 3))),
    "no-vision,text-centroid": (
        {"layer": 3, "weights": "1,-0.5"},
        lambda p, i, w, x, b, f: ([no_vision(), text_centroid(b, 3)], [1.0, -0.5]),
    ),
    "blank-image=black + -0.5*mean-vision": (
        {"alpha_cd": -1.5},
        lambda p, i, w, x, b, f: ([blank_image(p, i, w, (0, 0, 0)), mean_vision(b)], [1.0, -0.5]),
    ),
    "2*text-centroid,vision-centroid": (
        {"layer": "text=1,vision=2"},
        lambda p, i, w, x, b, f: ([text_centroid(b, 1), vision_centroid(b, 2)], [2.0, 1.0]),
    ),
}


@pytest.mark.parametrize("typed", CASES)
def test_it_decodes_as_python_does(model_dir, loaded, bank, bank_file, shown, typed):
    options, make = CASES[typed]
    reference = typed.replace("FILE", str(shown / "other.png"))
    banked = {"bank": bank_file} if "centroid" in typed or "mean" in typed else {}
    rule = {"alpha_cd": 3.0, "beta": 0.01} | {k: v for k, v in options.items() if k == "alpha_cd"}
    given = {"reference": reference, **banked, **options, **rule}
    rows = [json.loads(line) for line in ok(generate(model_dir, shown, **given, batch_size=2)).stdout.splitlines()]
    images = [[Image.open(shown / "seen.png")]] * 2
    inputs = encode(loaded.processor, images, PROMPTS)
    made = make(loaded.processor, images, PROMPTS, inputs, bank, shown)
    references, weights = made if isinstance(made, tuple) else ([made], [1.0])
    contrast = Contrast(loaded.model, references, weights=weights, **rule)
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = texts(loaded, loaded.model.generate(**inputs, custom_generate=contrast, **options), inputs)
    plain = texts(loaded, loaded.model.generate(**inputs, **options), inputs)
    assert [row["contrasted"] for row in rows] == expected
    assert [row["plain"] for row in rows] == plain
    assert expected != plain  # or the test would pass without a contrast


def test_every_reference_is_tried():
    tried = {term.name for typed in CASES for term in parse_references(typed)}
    assert tried == set(NAMES)


def test_the_probe_knows_the_same_names_and_writes_two_at_once_in_the_same_way():
    assert set(KINDS) | {"prompt"} == set(NAMES)
    text = "blank-image=black+-0.5*no-vision"
    probed = [(term.kind.name, term.value or None, term.weight) for term in parse(text)]
    assert probed == [(term.name, term.value, term.weight) for term in parse_references(text)]


def test_without_a_bank_the_image_is_withheld(model_dir, shown, bank_file):
    strong = {"alpha_cd": 3}
    assert (
        generate(model_dir, shown, **strong).stdout
        == generate(model_dir, shown, reference="no-vision", **strong).stdout
    )
    of_bank = {"bank": bank_file, "layer": 1, **strong}
    assert (
        generate(model_dir, shown, **of_bank).stdout
        == generate(model_dir, shown, reference="text-centroid", **of_bank).stdout
    )


@pytest.mark.parametrize("reference", ["blank-image=black", "noised-image", "prompt"])
def test_each_batch_has_references_of_its_own(model_dir, shown, reference):
    options = {"reference": reference, "alpha_cd": 3} | ({"other_prompt": WORDS} if reference == "prompt" else {})
    one, two = (ok(generate(model_dir, shown, batch_size=size, **options)).stdout for size in (1, 2))
    if reference == "noised-image":  # the noise is drawn for a whole batch
        assert one.splitlines()[0] == two.splitlines()[0]
    else:
        assert one == two


def test_other_words_without_the_image(model_dir, loaded, shown):
    options = {"reference": "prompt", "other_prompt": "{prompt}", "alpha_cd": 3}
    row = json.loads(ok(generate(model_dir, shown, "--text-only", prompts=PROMPTS[:1], **options)).stdout)
    inputs = encode(loaded.processor, [[Image.open(shown / "seen.png")]], PROMPTS[:1])
    contrast = Contrast(loaded.model, other_prompt(loaded.processor, PROMPTS[:1]), alpha_cd=3.0)
    tokens = loaded.model.generate(**inputs, custom_generate=contrast, max_new_tokens=4, do_sample=False)
    assert row["contrasted"] == texts(loaded, tokens, inputs)[0] != row["plain"]


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "grey"}, "no reference is called 'grey'; expected one of text-centroid, vision-centroid"),
        ({"reference": ""}, "no reference is called ''"),
        ({"reference": "no-vision,"}, "no reference is called ''"),
        ({"reference": "no-vision,no-vision"}, "expected each name once"),
        ({"reference": "no-vision=1"}, "no-vision takes nothing behind its name"),
        ({"reference": "blank-image="}, "blank-image=; expected blank-image=COLOR or FILE, or blank-image"),
        (
            {"reference": "blank-image=gray!"},
            "expected a color such as grey, black or #7f7f7f, or a picture's file",
        ),
        ({"reference": "noised-image=1000"}, "expected a step of the noise, 0 to 999"),
        ({"reference": "noised-image=-1"}, "expected a step of the noise, 0 to 999"),
        ({"reference": "early-exit=middle"}, "expected low, high, a decoder layer, or some as in 4-8"),
        ({"reference": "early-exit=3-1"}, "expected low, high, a decoder layer, or some as in 4-8"),
        ({"reference": "early-exit=99"}, "layer 99 is out of range"),
        ({"reference": "0*no-vision"}, "no-vision has the weight 0; expected a finite number other than 0"),
        ({"weights": "nan"}, "has the weight nan"),
        ({"weights": "1,2"}, "--weights '1,2' are 2 for 1 of --reference; expected one for each"),
        ({"weights": "x"}, "--weights 'x'; expected numbers with commas between"),
        ({"reference": "2*no-vision", "weights": "2"}, "holds weights, and so does --weights; give them once"),
        (
            {"reference": "text-centroid"},
            "text-centroid needs --bank FILE, which tccd fit --layers text=LAYER makes",
        ),
        (
            {"reference": "mean-vision"},
            "mean-vision needs --bank FILE, which tccd fit makes; no-vision needs none",
        ),
        (
            {"bank": "BANK", "reference": "no-vision"},
            "--bank is of text-centroid and vision-centroid and mean-vis",
        ),
        (
            {"alpha_interp": 0.5},
            "--alpha-interp is of text-centroid and vision-centroid, but --reference is no-vis",
        ),
        ({"layer": 1}, "--layer is of text-centroid and vision-centroid, but --reference is no-vision; leave it"),
        ({"bank": "BANK", "layer": "vision=2"}, "--layer is of vision-centroid, but --reference is text-centroid"),
        (
            {"bank": "BANK", "layer": "audio=2"},
            "--layer 'audio=2'; expected a layer, from 0, as in 12 or text=12,",
        ),
        ({"bank": "BANK", "layer": "text=1,text=2"}, "expected a layer, from 0, as in 12 or"),
        ({"bank": "BANK"}, "the bank holds text centroids of layers [1, 3]; say which by --layer"),
        ({"bank": "BANK", "reference": "vision-centroid", "layer": 1}, "no vision centroids at layer 1; it holds"),
        ({"bank": "BANK", "layer": 1, "alpha_interp": "nan"}, "alpha_interp is nan; expected 0 to 1"),
        ({"other_prompt": "x"}, "--other-prompt is of prompt, but --reference is no-vision; leave it out"),
        ({"reference": "prompt"}, "prompt needs --other-prompt TEXT, in which {prompt} stands for the question"),
        ({"reference": "prompt", "other_prompt": " "}, "prompt needs --other-prompt TEXT"),
        ({"seed": 3}, "--seed is of noised-image, but --reference is no-vision"),
        ({"fitted_on": "x"}, "--fitted-on is of a bank, and there is no --bank; leave it out"),
        (
            {"reference": "prompt", "other_prompt": "<image> {prompt}"},
            "--other-prompt of --prompt 1: the prompt holds '<image>'",
        ),
        ({"alpha_cd": "inf"}, "alpha_cd is inf; expected a finite number"),
    ],
)
def test_what_does_not_fit_together(model_dir, shown, bank_file, options, message):
    given = {name: bank_file if value == "BANK" else value for name, value in options.items()}
    result = generate(model_dir, shown, **given)
    assert result.exit_code in (1, 2)
    [told] = [line for line in result.stderr.splitlines() if line]
    assert message in told
    assert json.loads(result.stdout)["error"]["message"] == told.removeprefix("tccd: ")


def test_text_only_alone(model_dir, shown):
    result = generate(model_dir, shown, "--text-only")
    assert "--text-only is of prompt, but --reference is no-vision" in result.stderr


def test_a_bank_that_lacks_what_the_reference_needs(model_dir, loaded, shown, tmp_path):
    mean, text = tmp_path / "mean", tmp_path / "text"
    CentroidBank.from_arrays(loaded.model, {}, [[0.0] * 128] * 6).save(mean)
    CentroidBank.from_arrays(loaded.model, {("text", 1): [[0.0] * 128]}).save(text)
    told = generate(model_dir, shown, bank=mean).stderr
    assert "the bank holds no text centroids, which text-centroid needs (CentroidBank(" in told
    ok(generate(model_dir, shown, bank=mean, reference="mean-vision"))
    assert "has no vision mean" in generate(model_dir, shown, bank=text, reference="mean-vision").stderr
    assert "no vision centroids" in generate(model_dir, shown, bank=text, reference="vision-centroid").stderr


def test_words_and_layers():
    assert Wanted(parse_references("prompt"), other_prompt="{prompt}? {prompt}!").other("a") == "a? a!"
    assert parse_layer(None) == {}
    assert parse_layer(" 4") == {"text": 4, "vision": 4}
    assert parse_layer("vision=3, text=2") == {"text": 2, "vision": 3}
    with pytest.raises(ConfigError, match="expected a layer"):
        parse_layer("-1")
