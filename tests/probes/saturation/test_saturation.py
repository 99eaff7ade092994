"""The saturation probe against whole forwards under masks of our own, and transformers' attention weights."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from probes.asking.forward import run_streams
from probes.saturation.depth import by_depth
from probes.saturation.probe import advise, run
from tccd.__main__ import app
from tccd.data import load_samples
from tccd.decoder import find_decoder
from tccd.decoding.references import no_vision
from tccd.errors import ConfigError
from tccd.loading import load_model
from tests import oracle
from tests.tiny import Row, cached_tiny, inputs

ROWS = [Row(before=3, after=5), Row(images=2, after=9)]
FAMILIES = ("llava", "qwen2_5_vl", "idefics3", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_withheld_above_a_layer_is_a_forward_with_a_mask_there(family):
    model = cached_tiny(family)
    batch, decoder = inputs(family, ROWS), find_decoder(model)
    splits = [None, *range(decoder.num_layers - 1)]
    found = run_streams(decoder, batch, [no_vision(above) for above in splits])
    for above, logits in zip(splits, found.others, strict=True):
        expected = oracle.withheld_logits(model, batch, 0 if above is None else above + 1)[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        # Gemma 3's last layers look back a window, in which no vision token is.
        assert family == "gemma3" or not torch.allclose(logits, found.clean, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_to_the_image_is_that_of_transformers(family):
    model = cached_tiny(family)
    batch, decoder = inputs(family, ROWS), find_decoder(model)
    found = by_depth(decoder, batch)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        weights = model(**batch, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    ids = torch.tensor(sorted(oracle.vision_ids_of(model)))
    for layer, one in enumerate(w.detach() for w in weights):
        tail = answer = top = 0.0
        for row in range(len(ROWS)):
            vision = torch.isin(batch["input_ids"][row], ids)
            after = int(vision.nonzero()[-1]) + 1
            mass = one[row][:, :, vision].sum(-1)
            tail += float(mass[:, after:].mean())
            answer += float(mass[:, -1].mean())
            top += float(mass[:, -1].max())
        assert found["tail"][layer] == pytest.approx(tail, abs=1e-4)
        assert found["answer"][layer] == pytest.approx(answer, abs=1e-4)
        assert found["answer_top"][layer] == pytest.approx(top, abs=1e-4)
    assert found["lens_answer"][-1] == pytest.approx(0, abs=1e-6)
    assert found["lens_answer"][0] > 1e-4


def test_a_split_is_advised_only_if_all_above_it_are_within_eps_too():
    bounds = [0.5, 0.0, 0.3, 0.01, 0.0]
    curve = [{"ci95": [0, b], "by_task": [{"task": "a", "ci95": [0, 0.02]}]} for b in bounds]
    found = advise(curve, [4.0, 3.0, 1.9, 0.5, 0.0], eps=0.01)
    assert (found["split"], found["by_task"], found["transition"], found["dpvr_split"]) == (3, {"a": None}, 2, 0)


ZOO = "eval/zoo/llava-grounded"


def asked(out, *more):
    common = ["--model", ZOO, "--data", "digits", "--limit", "24", "--out", str(out)]
    return CliRunner().invoke(app, ["probe", "saturation", *common, *more])


def test_the_command_measures_a_default_model_and_writes_its_curve(tmp_path):
    done = asked(tmp_path, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "saturation.json").read_text())
    assert [row["split"] for row in found["curve"]] == list(range(found["num_layers"]))
    assert found["curve"][0]["kl"] > found["curve"][-1]["kl"] >= 0
    assert found["curve"][0]["cost"] > 0.1
    for row in found["layers"]:
        assert 0 < row["tail"] < 1
        assert 0 < row["tail_uniform"] < 1
        assert row["tail"] <= row["tail_top"] <= 1
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize("eps", ["0", "1", "nan", "-1"])
def test_an_eps_out_of_range_is_refused(tmp_path, eps):
    done = asked(tmp_path, f"--eps={eps}")
    assert done.exit_code != 0
    assert "eps" in done.output or "eps" in str(done.exception)


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    done = asked(tmp_path / "file")
    assert done.exit_code != 0
    assert "is a file" in done.output or "is a file" in str(done.exception)


def test_a_run_cut_short_goes_on_to_the_same_result(tmp_path):
    loaded, samples = load_model(ZOO), list(load_samples("digits", limit=12, seed=1, purpose="probe"))
    given = {"batch_size": 4, "journal": tmp_path / "unfinished"}
    whole = run(loaded.model, loaded.processor, samples, batch_size=4)

    def cut(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loaded.model, loaded.processor, samples, progress=cut, **given)
    with pytest.raises(ConfigError, match="resume"):
        run(loaded.model, loaded.processor, samples, **given)
    resumed = run(loaded.model, loaded.processor, samples, resume=True, **given)
    for one, other in zip(resumed["curve"], whole["curve"], strict=True):
        # Sums of floats are not the same to the last bit in two runs, cut short or not.
        assert one["kl"] == pytest.approx(other["kl"], abs=1e-5)
        assert one["right"] == other["right"]
        assert one["ci95"] == other["ci95"]
    for one, other in zip(resumed["layers"], whole["layers"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
