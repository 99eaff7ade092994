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
for joint in (*joints.WRAPPED, *joints.READ):
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
    joints.check((*joints.WRAPPED, *joints.READ))


def test_names_are_told_once_and_files_are_there():
    assert len(joints.NAMED) == len(joints.WRAPPED) + len(joints.READ) + len(joints.LOADED)
    assert all((ROOM / f"{joint.file}.py").is_file() for joint in joints.NAMED.values())


def test_the_table_names_the_file_that_uses_a_joint(vllm):
    from tccd.decoding.vllm import admission, guard, metrics, plugin, runners

    used = {(name, file.__name__.rpartition(".")[2]) for file in (admission, guard, metrics, plugin, runners)
            for name in file.AROUND}  # fmt: skip
    assert used == {(joint.name, joint.file) for joint in joints.WRAPPED}


class Moved:
    """Functions of vLLM as another release might have them."""

    def process_inputs(self, prompt: Any, request_id: str, params: Any) -> None: ...

    def prepare_attn(self, input_batch: Any, block_tables: Any) -> None: ...

    def execute_model(self, scheduler_output: Any) -> None: ...

    def _check_model(self, request: Any) -> None: ...

    load_model = None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("request in", r"takes \(self, prompt, request_id, params\), written for \(self, request_id, prompt, "),
        ("V2 layout", r"takes \(self, input_batch, block_tables\), written for \(self, input_batch\)"),
        ("V2 execute", r"takes \(self, scheduler_output\), written for \(self, scheduler_output, ..., dummy_run"),
        ("line in", "is no coroutine function"),
        ("V1 shutdown", "is not there"),
        ("CPU load", "is no function with parameters"),
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


def test_forwards_are_put_back_as_they_were():
    class Module:
        def forward(self) -> int:
            return 1

    plain, own = Module(), Module()
    own.forward = held = lambda: 2  # type: ignore[method-assign]
    with objects.forwards([(plain, lambda: 3), (own, lambda: 4)]):
        assert (plain.forward(), own.forward()) == (3, 4)
    assert (vars(plain), vars(own)) == ({}, {"forward": held})


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
OURS = {"self", "erased", "second", "chunk.tail", "self.tails[name]"}


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.name)
def test_no_other_file_sets_an_attribute_of_vllm(file):
    if file.name in ("joints.py", "objects.py"):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("setattr", "delattr"), node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            assert ast.unparse(node.value) in OURS, (node.lineno, ast.unparse(node))
