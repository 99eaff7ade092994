"""How the default models are made: their words, their labels, questions packed behind one prefix."""

import pytest
import torch
from PIL import Image

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")

from eval.zoo import train
from eval.zoo.build import FAMILIES
from eval.zoo.data import IGNORED, SOURCES, attributes, labels, pack, train_split, views
from eval.zoo.train import Trainer
from eval.zoo.words import BOS, tokenizer
from tccd.data import Sample, digits, load_samples
from tccd.data.easy_vqa import COLORS, SHAPES, task_of
from tccd.inputs import encode


@pytest.fixture(scope="module")
def groups():
    return train_split()


@pytest.fixture(scope="module", params=FAMILIES)
def trainer(request):
    """An untrained model on 70 images, half of them of digits."""
    return Trainer(FAMILIES[request.param], seed=0, images=70)


def question(prompt, answer):
    return Sample(
        f"{prompt} {answer}", "0", prompt, answer, None, task_of(prompt), lambda: Image.new("RGB", (64, 64))
    )


def test_tokenizer_knows_the_data_sets_and_survives_the_rest():
    words = tokenizer({"image_token": "<image>"})
    for source in SOURCES:
        for split in ("train", "test"):
            samples = load_samples(source, split=split)
            for prompt in {s.prompt for s in samples}:
                assert words.unk_token_id not in words(prompt)["input_ids"]
            assert all(len(words(answer)["input_ids"]) == 1 for answer in {s.answer for s in samples})
    assert words.tokenize("Foo, a BLUE-circle?\n") == ["<unk>", "<unk>", "a", "blue", "<unk>", "circle", "?"]
    assert words.tokenize("(a) (b)") == ["(", "a", ")", "(", "b", ")"]
    assert words("")["input_ids"] == []
    assert words.padding_side == "left"


def test_attributes_implied_by_questions():
    def of(*pairs):
        shape, color = attributes([question(*pair) for pair in pairs])
        return (SHAPES[shape] if shape >= 0 else None, COLORS[color] if color >= 0 else None)

    assert of(("what is the red shape?", "circle")) == ("circle", "red")
    assert of(("what color is the circle?", "teal")) == ("circle", "teal")
    assert of(("is there a circle?", "no"), ("is no triangle present?", "yes")) == ("rectangle", None)
    assert of(("does the image not contain a blue shape?", "no")) == (None, "blue")
    assert of(("is there a blue shape?", "no")) == (None, None)


def test_labels_of_every_train_image(groups):
    found = labels(groups)
    assert found.shape == (8000, 6)
    shown = found[:, 2] != IGNORED
    assert shown.tolist() == [name.startswith("digits") for name in groups]
    assert (found[shown, :2] == IGNORED).all()
    assert (found[~shown, 2:] == IGNORED).all()
    assert (found[~shown, :2] == IGNORED).float().mean() < 0.1
    expected = [[10 if v is None else v for v in p.values] for p in digits.pictures("train")]
    assert found[shown, 2:].tolist() == expected


def test_the_other_view_keeps_every_answer(groups):
    shape, digit = groups["train-0"], groups["digits-train-0"]
    same, mirrored = views(shape)
    assert same == shape[0].image
    assert mirrored.transpose(Image.Transpose.FLIP_LEFT_RIGHT) == same
    same, turned = views(digit)
    assert same == digit[0].image != turned  # a mirrored digit would be no digit


def test_packed_questions_get_the_logits_they_get_alone(trainer):
    words, model = trainer.processor.tokenizer, trainer.model.eval()
    rows = [trainer.samples[0][:3], trainer.samples[-1][:1]]
    asked = [[(trainer.ids[s.prompt], words.convert_tokens_to_ids(s.answer)) for s in row] for row in rows]
    batch = pack(trainer.prefix, trainer.positions, asked, words.eos_token_id, words.pad_token_id)
    targets = batch.pop("labels")
    with torch.inference_mode():
        packed = model(**trainer.family.inputs(trainer.pixels[0, [0, -1]]), **batch).logits
        answers = (targets != IGNORED) & (targets != words.eos_token_id)
        assert answers.sum() == 4
        flat = [s for row in rows for s in row]
        for sample, logits in zip(flat, packed[answers], strict=True):
            alone = model(**encode(trainer.processor, [[sample.image]], [sample.prompt])).logits[0, -1]
            torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-4)
    assert targets[answers].tolist() == [answer for row in asked for _, answer in row]
    assert (targets == words.eos_token_id).sum() == 4


def test_the_prefix_is_what_every_prompt_starts_with(trainer):
    sample = trainer.samples[0][0]
    ids = encode(trainer.processor, [[sample.image]], [sample.prompt])["input_ids"][0].tolist()
    assert ids == [*trainer.prefix, *trainer.ids[sample.prompt]]
    assert ids[0] == trainer.processor.tokenizer.convert_tokens_to_ids(BOS)
    assert trainer.positions.shape[1] == len(trainer.prefix)


def test_stage_0_sees_the_quarters_where_they_are(trainer):
    """A change in one quarter of the picture moves that quarter's features most."""
    family, model = trainer.family, trainer.model.eval()
    black = Image.new("RGB", (64, 64))
    for quarter in range(4):
        row, column = divmod(quarter, 2)
        changed = black.copy()
        changed.paste("white", (32 * column, 32 * row, 32 * column + 32, 32 * row + 32))
        with torch.inference_mode():
            pixels = family.pixels(trainer.processor, [black, changed])
            before, after = family.features(model, family.inputs(pixels))
        half = round(len(before) ** 0.5) // 2
        moved = (after - before).norm(dim=-1).view(2, half, 2, half).mean((1, 3)).flatten()
        assert moved.argmax() == quarter


@pytest.mark.slow
def test_an_epoch_lowers_the_loss(trainer, monkeypatch):
    monkeypatch.setattr(train, "TOWER", {**train.TOWER, "epochs": 2, "batch": 10})
    for _ in range(2):
        trainer.tower()
    for _ in range(2):
        trainer.answer("whole model", {**train.WHOLE, "epochs": 2, "questions": 4})
    before, after, asked, asked_again = (
        float(line.rpartition("loss ")[2]) for line in trainer.log.lines if "loss" in line
    )
    assert after < 0.97 * before
    assert asked_again < 0.9 * asked
