"""A model that is not whole, or not there, is refused in one line: never fitted, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tccd.errors import ConfigError, TCCDError
from tccd.loading import check_source, load_model

SOUND = Path(__file__).parents[3] / "eval" / "zoo" / "llava-grounded"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SOUND, tmp_path / "model", ignore=shutil.ignore_patterns("*.log", "metrics.json"))
    return tmp_path / "model"


def weights(change):
    def edit(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return edit


def down(tensors):
    [name] = [name for name in tensors if "layers.1.mlp.down_proj" in name]
    return name


def cut(size):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def config(**change):
    def edit(folder):
        old = json.loads((folder / CONFIG).read_text())
        text = {**old["text_config"], **change.pop("text", {})}
        (folder / CONFIG).write_text(json.dumps({**old, "text_config": text, **change}))

    return edit


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")


def no_second_file(folder):
    names = dict.fromkeys(load_file(folder / WEIGHTS), "model-00002-of-00002.safetensors")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


DEEP = b'{"a":' * 10**5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            weights(lambda t: t.pop(down(t))),
            r"lacks 1 of 116 weights \(model\.language_model\.layers\.1\.mlp\.down_proj",
        ),
        (
            weights(lambda t: [t.pop(n) for n in list(t) if "vision" in n]),
            r"lacks 55 of 116 weights \(.*, \.\.\.\)",
        ),
        (weights(lambda t: [t.update({f"x.{n}": t.pop(n)}) for n in list(t)]), "lacks 116 of 116 weights"),
        (config(text={"num_hidden_layers": 7}), r"lacks 9 of 125 weights \(model\.language_model\.layers\.6"),
        (
            weights(lambda t: t.update({down(t): t[down(t)][:, 1:].contiguous()})),
            r"has another shape for 1 of 116 weights \(model\.language_model\.layers\.1\.mlp\.down_proj",
        ),
        (weights(lambda t: t[down(t)][0].fill_(torch.inf)), "has values that are not finite in 1 of 116 weights"),
        (pickled, "lacks 116 of 116 weights"),
        (cut(-1), r"its weights are truncated or damaged \(.*; download or copy them again"),
        (cut(100), "its weights are truncated or damaged"),
        (cut(0), "its weights are truncated or damaged"),
        (write(WEIGHTS, b"\x80\x04." * 999), "its weights are truncated or damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no file named model.safetensors"),
        (no_second_file, "No such file or directory: .*model-00002-of-00002.safetensors"),
        (write(f"{WEIGHTS}.index.json", DEEP), None),
        (write(CONFIG, DEEP), "a JSON file of it is nested too deeply"),
        (write("tokenizer.json", DEEP), "a JSON file of it is nested too deeply"),
        (write("processor_config.json", DEEP), "a JSON file of it is nested too deeply"),
        (write("generation_config.json", DEEP), "a JSON file of it is nested too deeply"),
        (write(CONFIG, b"[]"), "expected a folder or hub id of an image-text-to-text model"),
        (write(CONFIG, b""), "expected a folder or hub id"),
        (write(CONFIG, b"\xff\xfe"), "expected a folder or hub id"),
        (write(CONFIG, b"{}"), "Unrecognized model"),
        (config(model_type="llama"), "Unrecognized configuration class"),
        (config(model_type="t5"), "Unrecognized configuration class"),
        (config(model_type="none-such"), "does not recognize this architecture"),
        (config(text={"hidden_size": -4}), "negative dimension"),
        (config(text={"hidden_size": 2**40}), "expected a folder or hub id"),
        (config(text={"num_attention_heads": 0}), "expected a folder or hub id"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "processor_config.json").unlink(), "image processor"),
        (write("chat_template.jinja", b"{% if %}"), r"TemplateSyntaxError.*chat_template\.jinja"),
        (write("chat_template.jinja", b"{{ raise_exception('no images') }}"), r"no images.*chat_template\.jinja"),
        (write("generation_config.json", b"{"), r"generation_config\.json is no JSON"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(folder, spoil, message):
    spoil(folder)
    if message is None:  # an index beside a whole file is not read
        load_model(str(folder))
        return
    with pytest.raises(TCCDError, match=message) as caught:
        load_model(str(folder))
    assert f"can't load model '{folder}'" in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "name",
    [
        "./modle",
        "modle",
        "",
        "/no/such/model",
        "~/no/such",
        "a/b/c",
        "../x",
        "eval/zoo/llava",
        "a\nb/c",
        "x" * 4000,
    ],
)
def test_a_path_where_nothing_is_is_no_hub_look_up(name):
    with pytest.raises(
        TCCDError, match="no such folder; expected a local one, or a hub id as owner/name"
    ) as caught:
        check_source(name)
    assert len(str(caught.value)) < 400


def test_local_folders_and_hub_ids(folder, monkeypatch):
    assert check_source(str(folder)) == str(folder)
    assert check_source("owner/Some-model.v1_5") == check_source("owner/Some-model.v1_5", "main")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert check_source("~/model") == str(folder)
    with pytest.raises(ConfigError, match=r"--revision 'main': .* is a local folder, which has no revisions"):
        load_model(str(folder), revision="main")
    with pytest.raises(TCCDError, match="is a file; expected the folder that it is in"):
        load_model(str(folder / CONFIG))


# How it is computed


def test_load_model(model_dir):
    assert load_model(str(model_dir)).model.dtype == torch.float32
    assert load_model(str(model_dir), dtype="bfloat16").model.dtype == torch.bfloat16
    assert not load_model(str(model_dir)).model.training


def test_a_half_precision_checkpoint_is_computed_in_single_on_a_cpu(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config["dtype"] = "float16"
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path / "half"), device="cpu").model.dtype == torch.float32
    assert load_model(str(tmp_path / "half"), device="cpu", dtype="float16").model.dtype == torch.float16


def test_code_from_a_repository_is_not_run_unasked(model_dir, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(TCCDError, match=r"can't load model .*trust-remote-code"):
        load_model(str(folder))
