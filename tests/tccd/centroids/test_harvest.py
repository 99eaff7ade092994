import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tccd.centroids.harvest import harvest
from tccd.errors import ConfigError, DataError, FitError, ModalityError
from tccd.modality import modality_map, vision_token_ids
from tests.tccd.centroids.fakes import TinyProcessor, TinySample, samples
from tests.tiny import CAUSAL_FAMILIES, Row, cached_tiny, inputs, tiny

LAYERS = {"text": (1, 2), "vision": (2,)}


def run(folder, family="llava", count=10, on_batch=None, given=None, **options):
    options = {"layers": LAYERS, "prompt": None, "batch_size": 3, "text_tokens": 5, **options}
    processor = TinyProcessor(family)
    found = harvest(
        cached_tiny(family),
        processor,
        samples(count) if given is None else given,
        out_dir=folder,
        on_batch=on_batch,
        **options,
    )
    return found, processor


def oracle(family, count=10, batch_size=3, text_tokens=5, segment="tokens"):
    """Rows read from `output_hidden_states` of whole forward passes."""
    model, processor = cached_tiny(family), TinyProcessor(family)
    rows = {"text.1": [], "text.2": [], "vision.2": []}
    given = samples(count)
    for start in range(0, count, batch_size):
        batch = given[start : start + batch_size]
        inputs = processor([s.prompt for s in batch], [[s.image] for s in batch])
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        where = modality_map(inputs["input_ids"], vision_token_ids(model.config), inputs["attention_mask"])
        text = where.tail & (where.tail.cumsum(-1) <= text_tokens)
        rows["text.1"].append(states[2][text])
        rows["text.2"].append(states[3][text])
        rows["vision.2"].append(states[3][where.segment("vision", segment)])
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def read(found):
    return {name: found.rows(*parse(name))[:] for name in found.manifest["rows"]}


def parse(name):
    modality, layer = name.split(".")
    return modality, int(layer)


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_rows_are_the_hidden_states(tmp_path, family):
    found, _ = run(tmp_path, family)
    expected = oracle(family)
    got = read(found)
    assert set(got) == set(expected)
    for name, rows in expected.items():
        np.testing.assert_array_equal(got[name], rows)
        assert found.manifest["rows"][name] == len(rows)


def test_the_span_holds_the_markers_between(tmp_path):
    tokens, _ = run(tmp_path / "a", "idefics3")
    span, _ = run(tmp_path / "b", "idefics3", vision="span")
    assert span.manifest["rows"]["vision.2"] == tokens.manifest["rows"]["vision.2"] + 10 * 2
    expected = oracle("idefics3", segment="span")["vision.2"]
    np.testing.assert_array_equal(span.rows("vision", 2)[:], expected)


def test_the_last_layer_is_not_normed(tmp_path):
    model = cached_tiny("llava")
    found, _ = run(tmp_path, layers={"text": 4}, count=2)
    rows = torch.from_numpy(found.rows("text", 4)[:])
    inputs = TinyProcessor("llava")([s.prompt for s in samples(2)], [[s.image] for s in samples(2)])
    with torch.no_grad():
        normed = model(**inputs, output_hidden_states=True).hidden_states[-1]
        where = modality_map(inputs["input_ids"], vision_token_ids(model.config), inputs["attention_mask"])
        text = where.tail & (where.tail.cumsum(-1) <= 5)
        torch.testing.assert_close(model.get_decoder().norm(rows), normed[text])
    assert not torch.allclose(rows, normed[text])


def test_layers_above_the_highest_are_not_run_and_hooks_go(tmp_path):
    model = tiny("llava")
    ran = []
    handles = [
        layer.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
        for i, layer in enumerate(model.get_decoder().layers)
    ]
    harvest(model, TinyProcessor("llava"), samples(3), LAYERS, tmp_path, prompt=None)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]
    assert not any(layer._forward_hooks for layer in model.get_decoder().layers)


def test_hooks_go_and_the_mode_returns_after_a_failure(tmp_path, monkeypatch):
    model = tiny("llava").train()
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "forward", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            harvest(model, TinyProcessor("llava"), samples(2), LAYERS, tmp_path, prompt=None)
    assert model.training
    assert not any(layer._forward_hooks for layer in model.get_decoder().layers)


def test_defaults_are_the_papers(tmp_path):
    found = harvest(cached_tiny("llava"), TinyProcessor("llava"), samples(4), {"text": 1, "vision": 2}, tmp_path)
    assert found.manifest["settings"]["prompt"] == "Describe what you see in this image.\nAnswer:"
    assert found.manifest["rows"] == {"text.1": 4 * 16, "vision.2": 4 * 9}
    assert (found.manifest["samples"], found.manifest["batches"]) == (4, 1)
    assert found.manifest["short_tails"] == 0


def test_short_tails_are_kept_whole_and_counted(tmp_path):
    found, _ = run(tmp_path, text_tokens=6)
    lengths = [len(s.prompt) for s in samples(10)]
    assert found.manifest["short_tails"] == sum(n < 6 for n in lengths) > 0
    assert found.manifest["rows"]["text.1"] == sum(min(n, 6) for n in lengths)


def test_a_seeded_sample_of_vision_tokens(tmp_path):
    a, _ = run(tmp_path / "a", max_vision_tokens_per_image=4)
    b, _ = run(tmp_path / "b", max_vision_tokens_per_image=4)
    c, _ = run(tmp_path / "c", max_vision_tokens_per_image=4, seed=1)
    assert a.manifest["rows"]["vision.2"] == 40
    assert np.array_equal(a.rows("vision", 2)[:], b.rows("vision", 2)[:])
    assert not np.array_equal(a.rows("vision", 2)[:], c.rows("vision", 2)[:])
    all_rows = oracle("llava")["vision.2"]
    assert all((all_rows == row).all(1).any() for row in a.rows("vision", 2)[:])


def test_half_precision_rows_keep_their_dtype(tmp_path):
    model = tiny("llava").bfloat16()
    found = harvest(model, TinyProcessor("llava"), samples(3), {"text": 1}, tmp_path, prompt=None)
    assert load_file(tmp_path / "batch-000000.safetensors")["text.1"].dtype == torch.bfloat16
    assert found.rows("text", 1)[:2].dtype == np.float32
    assert found.manifest["settings"]["dtype"] == "bfloat16"


def test_rows_read_in_parts(tmp_path):
    found, _ = run(tmp_path)
    rows = found.rows("text", 1)
    whole = rows[:]
    assert rows.shape == whole.shape == (len(rows), 64)
    rng = np.random.default_rng(0)
    at = np.sort(rng.choice(len(rows), 17, replace=False))
    assert np.array_equal(rows[at], whole[at])
    assert np.array_equal(rows[5:23], whole[5:23])
    assert rows[len(rows) :].shape == (0, 64)
    assert np.array_equal(rows[10 : len(rows) + 5], whole[10:])
    with pytest.raises(IndexError, match="ascending"):
        rows[np.array([3, 1])]
    with pytest.raises(IndexError, match="within 0 to"):
        rows[np.array([len(rows)])]
    with pytest.raises(IndexError, match="step 2"):
        rows[::2]
    with pytest.raises(FitError, match=r"text.3 was not harvested; .* holds text.1, text.2, vision.2"):
        found.rows("text", 3)


def test_progress(tmp_path):
    seen = []
    run(tmp_path / "a", on_batch=lambda *a: seen.append(a))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    run(tmp_path / "b", given=iter(samples(4)), on_batch=lambda *a: seen.append(a))
    assert seen == [(1, None), (2, None)]


class Cut(Exception):
    pass


def breaking(count, at):
    for i, sample in enumerate(samples(count)):
        if i == at:
            raise Cut
        yield sample


@pytest.mark.parametrize("at", [0, 2, 3, 7, 9])
def test_an_interrupted_harvest_goes_on(tmp_path, at):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Cut):
        run(tmp_path / "cut", given=breaking(10, at))
    done = at // 3
    assert len(list((tmp_path / "cut").glob("batch-*"))) == done
    again, processor = run(tmp_path / "cut")
    assert processor.calls == 4 - done
    assert again.manifest == whole.manifest
    for name, rows in read(whole).items():
        np.testing.assert_array_equal(read(again)[name], rows)
    _, processor = run(tmp_path / "cut")
    assert processor.calls == 0


@pytest.mark.slow
def test_a_killed_harvest_goes_on(tmp_path):
    program = f"""
import time
from tests.tccd.centroids.test_harvest import run
run({str(tmp_path / "cut")!r}, on_batch=lambda done, total: (print(done, flush=True), time.sleep(0.3)))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "1"
    assert process.stdout.readline().strip() == "2"
    time.sleep(0.3)  # somewhere in the third batch
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list((tmp_path / "cut").glob("batch-*.safetensors")))
    assert 2 <= done <= 4
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["complete"] in (False, done == 4)
    whole, _ = run(tmp_path / "whole")
    again, processor = run(tmp_path / "cut")
    assert processor.calls == 4 - done
    assert again.manifest == whole.manifest
    for name, rows in read(whole).items():
        np.testing.assert_array_equal(read(again)[name], rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "other"}, r"prompt: None there, 'other' now"),
        ({"batch_size": 4}, r"batch_size: 3 there, 4 now"),
        ({"layers": {"text": 1}}, r"layers: .*'vision': \[2\].* there, .* now"),
        ({"text_tokens": 6}, r"text_tokens: 5 there, 6 now"),
        ({"seed": 1}, r"seed: 42 there, 1 now"),
        ({"vision": "span"}, r"vision: 'tokens' there, 'span' now"),
        ({"vision_mean": True}, r"vision_mean: False there, True now"),
        ({"max_vision_tokens_per_image": 2}, r"max_vision_tokens_per_image: None there, 2 now"),
        ({"family": "gemma3"}, r"model: .*llava.* there, .*gemma3.* now"),
    ],
)
def test_resuming_with_other_settings_says_which(tmp_path, change, message):
    run(tmp_path)
    with pytest.raises(FitError, match=message) as caught:
        run(tmp_path, **change)
    assert "to resume it, or another folder" in str(caught.value)


def test_resuming_with_other_samples(tmp_path):
    run(tmp_path)
    swapped = samples(10)
    swapped[4], swapped[5] = swapped[5], swapped[4]
    with pytest.raises(FitError, match=r"other samples: batch 2 began with 's3' there, and begins with 's3' now"):
        run(tmp_path, given=swapped)
    with pytest.raises(FitError, match=r"batch 1 began with 's0' there, and begins with 's1' now"):
        run(tmp_path, given=samples(11)[1:])
    with pytest.raises(FitError, match="more samples than the 6 given"):
        run(tmp_path, count=6)
    with pytest.raises(FitError, match="batch 3 began"):
        run(tmp_path, count=8)


def test_damaged_files(tmp_path):
    run(tmp_path)
    shard = tmp_path / "batch-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        FitError, match=r"batch-000001.safetensors is damaged .*delete it, and the harvest makes it"
    ):
        run(tmp_path)
    shard.unlink()
    _, processor = run(tmp_path)
    assert processor.calls == 1
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(FitError, match=r"manifest.json is damaged"):
        run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FitError, match=r"shards without a manifest.json"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": {}}, ConfigError, "no layer is asked for"),
        ({"layers": {"text": ()}}, ConfigError, "no layer is asked for"),
        ({"layers": {"text": 5}}, ConfigError, "layer 5 is out of range; this model has 5"),
        ({"layers": {"audio": 1}}, ConfigError, "unknown modality 'audio'"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"text_tokens": 0}, ConfigError, "text_tokens is 0"),
        ({"max_vision_tokens_per_image": 0}, ConfigError, "max_vision_tokens_per_image is 0"),
        ({"vision_mean": 1}, ConfigError, "vision_mean is 1; expected True or False"),
        ({"vision": "all"}, ConfigError, "vision is 'all'; expected one of tokens, span"),
        ({"count": 0}, FitError, "there are no samples"),
    ],
)
def test_wrong_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, **change)


def test_a_sample_without_an_image(tmp_path):
    class Bare(TinySample):
        image = None

    with pytest.raises(DataError, match="sample 's3' has no image"):
        run(tmp_path, given=[Bare(3, "xxxx")])


def test_a_prompt_without_vision_tokens(tmp_path):
    class Forgetful(TinyProcessor):
        def __call__(self, text, images, **options):
            return inputs(self.family, [Row(images=0) for _ in text])

    processor = Forgetful("llava")
    with pytest.raises(ModalityError, match="none of its vision tokens"):
        harvest(cached_tiny("llava"), processor, samples(2), LAYERS, tmp_path, prompt=None)
