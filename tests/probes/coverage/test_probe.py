"""The probe on a real model: its codes are those of whole forwards, and it measures what is known of the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.coverage.known import scenes, taken
from eval.zoo import load
from probes.coverage import Source, coverage
from probes.coverage.assigning import Codebooks, look_up, spoken
from probes.coverage.counts import expected_covered
from probes.coverage.measure import gather
from probes.coverage.schema import checked
from tccd import CentroidBank, fit_bank
from tccd.centroids.replacement import Centroids
from tccd.data import Samples, load_samples, union
from tccd.errors import BankMismatchError, ConfigError, DataError
from tccd.inputs import encode

LAYERS = {"text": 2, "vision": 3}


@pytest.fixture(scope="module")
def zoo():
    return load("llava-grounded")


@pytest.fixture(scope="module")
def sets():
    return [Source(name, load_samples(name, split="train", images=40, seed=1)) for name in ("easy-vqa", "digits")]


@pytest.fixture(scope="module")
def bank(zoo, sets):
    both = union([one.samples for one in sets])
    return fit_bank(*zoo, both, layers=LAYERS, k=24, images=160, prompt=None, seed=0, vision_mean=False)


@pytest.fixture(scope="module")
def found(zoo, sets, bank):
    return coverage(*zoo, sets, bank, draws=20)


@torch.no_grad()
def codes_of(model, processor, sample, bank):
    """By a forward of its own that returns every layer's output, and distances to all centroids."""
    inputs = encode(processor, [[sample.image]], [sample.prompt])
    # Entry 0 are the embeddings; the last one is normed, and not asked for here.
    states = model(**inputs, output_hidden_states=True).hidden_states
    vision = inputs["input_ids"][0] == model.config.image_token_id
    last = int(vision.nonzero().max())
    rows = {"text": states[LAYERS["text"] + 1][0, last + 1 :], "vision": states[LAYERS["vision"] + 1][0, vision]}
    return {
        name: torch.cdist(part.double(), bank.tensors[name, LAYERS[name]].double()).argmin(-1)
        for name, part in rows.items()
    }


def test_codes_are_those_of_whole_forwards(zoo, sets, bank, found):
    samples = spoken(sets[1].samples, "both")
    for number, record in list(enumerate(found.stores["digits"]))[::60]:
        wanted = codes_of(*zoo, samples[number], bank)
        assert record.text.tolist() == sorted(set(wanted["text"].tolist()))
        assert record.vision.tolist() == sorted(set(wanted["vision"].tolist()))
        assert record.tokens == len(wanted["text"])


def test_a_result_is_whole(found, sets):
    result = checked(found.result)
    assert [one["pictures"] for one in result["sets"]] == [40, 40] == [result["equal_n"]] * 2
    assert {(row["set"], row["codebook"]) for row in result["coverage"]} == {
        (one.name, book) for one in sets for book in ("vision", "text", "pairs")
    }
    for row in result["coverage"]:
        assert row["rarefied"]["value"] == pytest.approx(row["hit"] / row["k"])
    assert {one["set"] for one in result["thin"]} == {"easy-vqa", "digits"}
    assert all(1 <= len(one["examples"]) <= 3 for one in result["thin"])


def test_a_rewritten_copy_is_told(zoo, sets, bank):
    other = replace(bank.model, model_id="base", fingerprint="0" * 64)
    moved = CentroidBank(other, bank.tensors, bank.entries, bank.provenance)
    small = [Source("a", Samples(sets[0].samples.items[:4], "a"))]
    with pytest.raises(BankMismatchError, match="--fitted-on base"):
        coverage(*zoo, small, moved, draws=0)
    assert coverage(*zoo, small, moved, draws=0, fitted_on="base").result["config"]["fitted_on"] == "base"


def test_the_text_that_counts(sets):
    samples = list(sets[0].samples)[:3]
    said = [spoken(samples, text)[0].prompt for text in ("prompt", "answer", "both")]
    assert said == [samples[0].prompt, samples[0].answer, f"{samples[0].prompt} {samples[0].answer}"]
    with pytest.raises(DataError, match="has no answer"):
        spoken([replace(samples[0], answer=None)], "answer")
    with pytest.raises(ConfigError, match="text is 'all'"):
        spoken(samples, "all")


def test_rows_of_several_samples_are_told_apart():
    books = Centroids(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]))
    rows = torch.tensor([[0.0, 1.0], [4.0, 1.0], [0.0, 3.0]])
    assert look_up(rows, [2, 0, 1], books) == [[[0, 1], 0, 5.0], [[], 0, 0.0], [[2], 2, 1.0]]
    rows[1, 0] = torch.nan
    assert look_up(rows, [2, 1], books)[0] is None


def test_fewer_kinds_of_scene_cover_less(zoo, bank):
    """24 kinds of scene, 16 images of each: 12 nested choices of kinds, at equal numbers of pictures, 5 orders."""
    samples, kinds = scenes("easy-vqa", 16)
    store = coverage(*zoo, [Source("all", samples)], bank, draws=0).stores["all"]
    k = Codebooks.of(bank, {}).k
    shares = np.zeros(12)
    for seed in range(5):  # kinds differ in how much they cover, so one order is noise
        order = np.random.default_rng(seed).permutation(24)
        for step, count in enumerate(range(2, 25, 2)):
            part = taken(store, [kind in order[:count] for kind in kinds])
            tally = gather(part, k, draws=0).vision
            shares[step] += expected_covered(tally.counts, tally.n, 32)
    assert np.corrcoef(np.argsort(np.argsort(shares)), range(12))[0, 1] >= 0.95


def test_copies_cover_no_more(zoo, bank, sets):
    items = sets[0].samples.items[:60]
    copies = tuple(replace(one, id=f"copy {one.id}", image_id=f"copy {one.image_id}") for one in items)
    once, twice = (
        coverage(*zoo, [Source("a", Samples(given, "a"))], bank, draws=0).result
        for given in (items, items + copies)
    )
    assert once["coverage"] == twice["coverage"]
    assert [row["value"] for row in once["density"]][:3] == [row["value"] for row in twice["density"]][:3]


def test_more_questions_are_denser_in_text_alone(zoo, bank):
    one, all_ = (
        coverage(
            *zoo, [Source("a", load_samples("easy-vqa", split="train", images=20, per_image=n))], bank, draws=0
        )
        for n in (1, None)
    )
    before, after = ({row["measure"]: row["value"] for row in found.result["density"]} for found in (one, all_))
    assert after["text"] > 1.5 * before["text"]
    assert after["vision"] == before["vision"]


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"least": 0}, ConfigError, "least is 0"),
        ({"draws": 5}, ConfigError, "draws is 5"),
        ({"text_tokens": 0}, ConfigError, "text_tokens is 0"),
        ({"layers": {"text": 1}}, BankMismatchError, "no text centroids at layer 1"),
    ],
)
def test_what_cant_be_measured_is_refused(zoo, sets, bank, change, error, told):
    with pytest.raises(error, match=told):
        coverage(*zoo, sets, bank, **change)


def test_sets_need_names_and_banks_both_modalities(zoo, sets, bank):
    with pytest.raises(ConfigError, match="one name"):
        coverage(*zoo, [sets[0], sets[0]], bank)
    text = CentroidBank.from_arrays(bank.model, {("text", 2): bank.tensors["text", 2]})
    with pytest.raises(ConfigError, match="no vision centroids"):
        coverage(*zoo, sets, text)
    several = {**bank.tensors, ("text", 1): bank.tensors["text", 2]}
    with pytest.raises(ConfigError, match="text centroids at layers 1, 2; expected one to be named"):
        coverage(*zoo, sets, CentroidBank.from_arrays(bank.model, several))


def test_a_bank_of_one_set_is_refused_before_any_forward(zoo, sets, monkeypatch):
    alone = fit_bank(*zoo, sets[0].samples, layers=LAYERS, k=8, prompt=None, vision_mean=False)
    monkeypatch.setattr("probes.coverage.probe.assign", lambda *_, **__: pytest.fail("a forward"))
    with pytest.raises(ConfigError, match="fitted on easy-vqa"):
        coverage(*zoo, sets, alone)
