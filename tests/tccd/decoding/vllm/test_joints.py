"""Every joint fits the installed vLLM, another shape is refused by name, and nothing else of vLLM is touched."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tccd.decoding.vllm import joints, objects
from tccd.errors import ConfigError, UnsupportedModelError
from tests.tccd.decoding.vllm.host import ROOT
from tests.tccd.decoding.vllm.test_refusals import environment

ROOM = Path(joints.__file__).parent

#: Prints which functions of vLLM are others after our plugin and our guard are in.
TOUCHED = """
import json, sys
from tccd.decoding.vllm import joints, plugin, guard
for joint in (*joints.WRAPPED, *joints.OVERRIDDEN, *joints.READ):
    joint.owner()

def functions():
    found = {}
    for name, module in [(n, m) for n, m in sys.modules.items() if n.split(".")[0] == "vllm" and m]:
        owners = [(name, module)] + [
            (f"{name}:{k}", v) for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == name
        ]
        found |= {(path, k): id(v) for path, owner in owners for k, v in vars(owner).items() if callable(v)}
    return found

before = functions()
plugin.register()
guard.install()
after = functions()
changed = [key for key in before if after[key] != before[key]]
print("FOUND", json.dumps([path + ("." if ":" in path else ":") + name for path, name in changed]))
"""


@pytest.fixture(scope="module")
def vllm():
    return pytest.importorskip("vllm")


def test_every_joint_fits_the_installed_release(vllm):
    joints.check((*joints.WRAPPED, *joints.OVERRIDDEN, *joints.READ))


def test_names_are_told_once_and_files_are_there():
    parts = joints.WRAPPED, joints.OVERRIDDEN, joints.READ, joints.LOADED
    assert len(joints.NAMED) == sum(map(len, parts))
    assert all((ROOM / f"{joint.file}.py").is_file() for joint in joints.NAMED.values())


def test_the_table_names_the_file_that_uses_a_joint(vllm):
    from tccd.decoding.vllm import guard, metrics, plugin

    used = {(name, file.__name__.rpartition(".")[2]) for file in (guard, metrics, plugin) for name in file.AROUND}
    assert used == {(joint.name, joint.file) for joint in joints.WRAPPED}


def test_what_is_overridden_is_there_and_all_of_it_is_told(vllm):
    from tccd.decoding.vllm.scheduler import PairScheduler
    from tccd.decoding.vllm.worker import Worker

    for ours, name in ((PairScheduler, "scheduler"), (Worker, "worker")):
        base = ours.__bases__[0]
        overridden = {key for key, value in vars(ours).items() if callable(value) and hasattr(base, key)}
        told = {joint.attribute for joint in joints.OVERRIDDEN if joint.file == name}
        assert overridden - {"__init__"} == told


class Moved:
    """Functions of vLLM as another release might have them."""

    def process_inputs(self, prompt: Any, request_id: str, params: Any) -> None: ...

    def schedule(self) -> None: ...

    def _preempt_request(self, timestamp: float, request: Any) -> None: ...

    def _check_model(self, request: Any) -> None: ...

    load_model = None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("request in", r"takes \(self, prompt, request_id, params\), written for \(self, request_id, prompt, "),
        ("scheduler _preempt_request", r"takes \(self, timestamp, request\), written for \(self, request, "),
        ("line in", "is no coroutine function"),
        ("scheduler make_stats", "is not there"),
        ("worker load_model", "is no function with parameters"),
    ],
)
def test_another_shape_is_refused_by_name_and_nothing_is_wrapped(vllm, monkeypatch, name, said):
    copy = type("Copy", (), dict(vars(Moved)))
    monkeypatch.setattr(joints.Joint, "owner", lambda joint: copy)
    with pytest.raises(ConfigError, match=f"'{name}' .*{said}") as caught:
        joints.wrap({name: lambda original, *args: original(*args)})
    assert f"vLLM {vllm.__version__} " in str(caught.value)
    assert "tested: >=0.32,<0.33" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(hasattr(function, "tccd") for function in vars(copy).values())


def test_a_module_that_is_gone_is_refused_by_name(vllm):
    gone = joints.Joint("gone", "vllm.nowhere:Thing.method", "self", "guard", "")
    with pytest.raises(ConfigError, match=r"'gone' \(vllm.nowhere:Thing.method\) is not there"):
        joints.check([gone])


def test_without_a_bank_a_vllm_of_another_shape_is_left_as_it_is(vllm, monkeypatch):
    from tccd.decoding.vllm import guard

    monkeypatch.delenv("TCCD_BANK", raising=False)
    monkeypatch.setattr(joints.Joint, "owner", lambda joint: Moved)
    guard.install()
    assert not hasattr(Moved.process_inputs, "tccd")
    monkeypatch.setenv("TCCD_BANK", "bank")
    with pytest.raises(ConfigError, match="'request in'"):
        guard.install()


def test_a_model_of_another_shape_is_refused_by_name():
    class Layer:
        def forward(self, hidden_states: Any, positions: Any) -> None: ...

    with pytest.raises(UnsupportedModelError, match=r"Layer.forward \(joint 'layer'\) takes \(hidden_states, pos"):
        objects.checked("layer", Layer())
    with pytest.raises(UnsupportedModelError, match=r"Layer.compute_logits \(joint 'logits'\) is not there"):
        objects.checked("logits", Layer())
    with pytest.raises(UnsupportedModelError, match=r"Layer.prepare_attn \(joint 'V2 layout'\) is not there"):
        objects.around("V2 layout", Layer(), print)


def test_an_object_is_changed_and_its_class_is_not():
    class Runner:
        def prepare_attn(self, input_batch: int) -> int:
            return input_batch

    one, other = Runner(), Runner()
    objects.around("V2 layout", one, lambda original, batch: original(batch) + 1)
    assert (one.prepare_attn(1), other.prepare_attn(1)) == (2, 1)
    assert vars(other) == {}


@pytest.mark.vllm
@pytest.mark.slow
def test_the_plugin_touches_the_joints_and_nothing_else_in_vllm(vllm, checkpoint):
    done = subprocess.run(
        [sys.executable, "-c", TOUCHED],
        env=environment(TCCD_BANK=str(checkpoint("qwen2_5_vl").file)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr
    assert sorted(json.loads(lines[0].removeprefix("FOUND "))) == sorted(j.place for j in joints.WRAPPED)


#: Names of our own objects, on which other files may set attributes.
OURS = {"self", "pair", "held"}


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.name)
def test_no_other_file_sets_an_attribute_of_vllm(file):
    if file.name in ("joints.py", "objects.py"):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("setattr", "delattr"), node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            assert ast.unparse(node.value) in OURS, (node.lineno, ast.unparse(node))
