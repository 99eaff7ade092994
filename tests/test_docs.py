"""The pages of docs/ say what is true: their names, options, sources and settings are those of the code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer

import tccd
from tccd.__main__ import app
from tccd.data.benchmarks import BENCHMARKS
from tccd.decoding.config import TCCDConfig
from tccd.decoding.vllm.settings import KEYS
from tccd.versions import TESTED

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(command: Any, *names: str) -> dict[tuple[str, ...], Any]:
    """Every command without subcommands, by its name's words."""
    below = getattr(command, "commands", {})
    if not below:
        return {names: command}
    return {key: one for name, sub in below.items() for key, one in commands(sub, *names, name).items()}


COMMANDS = commands(typer.main.get_command(app))


def told(text: str) -> list[list[str]]:
    """The words of each `tccd` command that stands in a block."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tccd ")]


def test_every_command_has_its_place() -> None:
    assert not [words for words in COMMANDS if f"tccd {' '.join(words)}" not in page("cli")]


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_commands_and_options_are_there(name: str) -> None:
    for words in told(page(name)):
        found = [key for key in COMMANDS if key == tuple(words[: len(key)])]
        assert found, words
        known = {option for parameter in COMMANDS[found[0]].params for option in parameter.opts}
        assert {word for word in words if re.match("--[a-z]", word)} <= known | {"--help"}, words


def test_options_named_in_the_text_are_there() -> None:
    known = {
        option
        for one in COMMANDS.values()
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for name in ("cli", "probes", "data", "banks"):
        prose = re.sub(r"^```.*?^```|`(?:eval|python)[^`]*`", "", page(name), flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`(?:tccd[a-z ]*)?(--[a-z-]+)", prose))
        assert named <= known | {"--help", "--dry-run"}, name


@pytest.mark.parametrize("name", [path.stem for path in PAGES])
def test_python_on_a_page_imports_what_is_there(name: str) -> None:
    for block in blocks(page(name), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                home = importlib.import_module(node.module)
                assert not [one.name for one in node.names if not hasattr(home, one.name)]


def test_the_first_run_is_an_example() -> None:
    assert blocks(page("index"), "python")[0] in (ROOT / "examples" / "contrast.py").read_text()


def test_the_api_page_holds_every_public_name() -> None:
    named = re.findall(r"^::: ([\w.]+)", page("api"), re.MULTILINE)
    assert not [one for one in tccd.__all__ if f"tccd.{one}" not in named]
    for name in named:
        if name != "tccd.errors":
            module, _, attribute = name.rpartition(".")
            assert reduce(getattr, [attribute], importlib.import_module(module))


def test_every_setting_is_told_with_its_default() -> None:
    rows = {}
    for line in page("transformers").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1]
    for field in fields(TCCDConfig):
        said = rows[field.name].strip('`"')
        if field.default is None:
            assert not re.match(r"[\d.]", said), field.name
        else:
            assert (float(said) if isinstance(field.default, float) else said) == field.default, field.name


def test_every_key_of_a_request_is_told() -> None:
    assert set(re.findall(r"`(tccd_[a-z_]+)`", page("vllm"))) >= set(KEYS)


def test_every_source_is_told() -> None:
    assert not [name for name in ("easy-vqa", "digits", *BENCHMARKS) if f"`{name}`" not in page("data")]


def test_every_extra_is_told() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [name for name in extras if f"| `{name}` |" not in page("install")]
    assert f"transformers>={TESTED[0]}" in project["dependencies"]
    assert f"transformers {TESTED[0]} to {TESTED[1]}" in page("install")
    makefile = (ROOT / "Makefile").read_text()
    assert f"LOWEST := {TESTED[0]}." in makefile
    assert f"NEWEST := {TESTED[1]}." in makefile


def test_every_target_of_make_that_is_told_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+) ", page("install"))) <= targets


def test_no_page_is_left_out() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    assert not [path.name for path in PAGES if f": {path.name}" not in nav]
