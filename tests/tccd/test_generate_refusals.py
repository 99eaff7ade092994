"""`tccd generate` with what can't be asked: one line that names the prompt, before the first answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tccd.__main__ import app
from tccd.centroids.bank import CentroidBank
from tccd.loading import load_model

ZOO = Path(__file__).parents[2] / "eval" / "zoo"
FAMILIES = ("llava", "idefics3", "qwen25vl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Banks of the default models, and pictures good and bad."""
    at = tmp_path_factory.mktemp("generate")
    for family in FAMILIES:
        model = load_model(str(ZOO / f"{family}-competing")).model
        rows = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
        CentroidBank.from_arrays(model, {("text", 1): rows}, data="drawn").save(at / f"{family}.safetensors")
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    noise.save(at / "good.png")
    (at / "cut.png").write_bytes((at / "good.png").read_bytes()[:2000])
    (at / "none.png").write_text("<html>404</html>")
    noise.save(at / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    noise.resize((402, 2)).save(at / "long.png")
    (at / "huge.pgm").write_bytes(b"P5\n50000 50000\n255\n")
    Image.fromarray(np.float32([[0, 300]])).save(at / "float.tif")
    return at


@pytest.fixture
def generate(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*args, family="llava", stdin=b""):
        model = ("--model", str(ZOO / f"{family}-competing"), "--bank", f"{family}.safetensors")
        given = ["generate", *model, "--max-new-tokens", "2", *map(str, args)]
        return CliRunner().invoke(app, given, input=stdin, prog_name="tccd")

    return run


def refused(result, message, answers=0):
    """One line on stderr, after so many answers."""
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"tccd: {message}"), line
    assert "expected" in line
    assert "Traceback" not in result.output
    assert sum('"plain"' in row for row in result.stdout.splitlines()) == answers


def test_what_is_right_is_answered(generate):
    result = generate("--image", "good.png", "--prompt", "what shape is it?", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompt"] == "what shape is it?"


@pytest.mark.parametrize(
    ("family", "token"),
    [("llava", "<image>"), ("idefics3", "<fake_token_around_image>"), ("qwen25vl", "<|image_pad|>")],
)
def test_the_image_token_in_the_last_prompt(generate, family, token):
    prompts = ("--prompt", "what shape?", "--prompt", f"is {token} red?")
    result = generate("--image", "good.png", *prompts, "--json", family=family)
    refused(result, f"--prompt 2: the prompt holds '{token}', which stands for a picture")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("none.png", "can't read image none.png: cannot identify image file"),
        ("moving.gif", "image moving.gif is an animation, or a file of several pages, of 2 frames;"),
        (
            "long.png",
            "image long.png has 402 x 2 pixels; expected a long side of at most 200 times the short",
        ),
        ("huge.pgm", "image huge.pgm has more than 178,956,970 pixels;"),
        ("gone.png", "no image gone.png; expected a file"),
    ],
)
def test_a_bad_image_is_found_before_the_first_answer(generate, image, message):
    lines = [{"prompt": "what shape?", "image": "good.png"}, {"prompt": "what color?", "image": image}]
    stdin = "\n".join(map(json.dumps, lines)).encode()
    refused(generate("--prompt", "-", "--json", family="qwen25vl", stdin=stdin), f"stdin line 2: {message}")


@pytest.mark.parametrize(
    ("image", "message"),
    [("cut.png", "can't read image cut.png: "), ("float.tif", "image float.tif holds floats from 0 to 300;")],
)
def test_damage_that_is_found_late_costs_no_answer(generate, image, message):
    lines = [{"prompt": "what shape?", "image": "good.png"}, {"prompt": "what color?", "image": image}]
    stdin = "\n".join(map(json.dumps, lines)).encode()
    refused(generate("--prompt", "-", "--json", stdin=stdin), f"stdin line 2: {message}", answers=1)
    shown = generate("--prompt", "-", stdin=stdin)
    assert "what shape?" in shown.stdout
    assert shown.exit_code == 1


def test_prompts_and_answers_that_do_not_fit(generate):
    asked = ("--image", "good.png", "--json", "--prompt", "what shape?", "--prompt")
    refused(generate(*asked, "what " * 300), "--prompt 2: the prompt has 3")
    # its picture, 64 tokens, makes it too long
    refused(generate(*asked, "what " * 230), "--prompt 2: the prompt has 295 tokens with its picture, but")
    refused(generate(*asked, "what " * 190), "--prompt 2: the prompt has 255 tokens with its picture and the")
    fits = generate(*asked, "what " * 189)
    assert fits.exit_code == 0, fits.output
    several = (*asked[:2], *asked[:2], *asked[2:])
    refused(generate(*several, "what " * 130), "--prompt 2: the prompt has 259 tokens with its picture")
    result = generate(*asked, "what color?", "--max-new-tokens", 256)
    refused(result, "--prompt 1: the prompt has")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ' + b"[" * 100_000, "stdin line 1: more than 100 lists and objects inside one another"),
        (b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}", "stdin line 1: more than 100 lists"),
        (b'{"prompt": "a?", "n": ' + b"9" * 5000 + b"}", "stdin line 1: not JSON: Exceeds the limit"),
        (b'{"prompt": "a?", "n": NaN}', "stdin line 1: not JSON: NaN is no number"),
        (b'{"prompt": "a?", "n": -Infinity}', "stdin line 1: not JSON: -Infinity is no number"),
        (b'{"prompt": "a?", "n": 1e999}', "stdin line 1: not JSON: 1e999 is out of range"),
        (b'{"prompt": "\xff"}', "stdin line 1: not JSON: 'utf-8' codec can't decode"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', "stdin line 1 is longer than 10,000,000 bytes"),
        (b'{"prompt": "a?", "image": "' + b"a" * 5000 + b'"}', "stdin line 1: no image aaa"),
        (b'{"prompt": "a?", "image": "a\\u0000b"}', "stdin line 1: no image a"),
        (b'{"prompt": "a?", "image": "\\ud800"}', "stdin line 1: image is str '\\ud800'"),
    ],
    ids=range(11),
)
def test_lines_that_no_one_would_write(generate, line, message):
    result = generate("--image", "good.png", "--prompt", "-", "--json", stdin=line)
    refused(result, message)
    assert len(result.stderr) < 500
