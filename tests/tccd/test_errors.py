"""The family of exceptions, and the message for an extra that is not installed."""

import inspect
import math
import sys

import pytest

from tccd import errors
from tccd.errors import (
    BankError,
    BankMismatchError,
    BusyError,
    MissingExtraError,
    TCCDError,
    WriteError,
    require,
)

FAMILY = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, Exception)]


@pytest.mark.parametrize("error", FAMILY)
def test_every_error_is_one_of_the_family_and_says_what_it_is_for(error):
    assert issubclass(error, TCCDError)
    assert error.__doc__


@pytest.mark.parametrize("error", [e for e in FAMILY if e is not TCCDError])
def test_callers_who_know_nothing_of_tccd_can_catch_it(error):
    others = {MissingExtraError: ImportError, BusyError: RuntimeError, WriteError: OSError}
    assert issubclass(error, others.get(error, ValueError))


def test_a_mismatch_is_a_bank_error():
    assert issubclass(BankMismatchError, BankError)


@pytest.mark.parametrize("module", ["math", "os.path"])
def test_require_returns_the_module(module):
    assert require(module, "any") is sys.modules[module]
    assert require("math", "any") is math


@pytest.mark.parametrize("module", ["tccd_not_there", "tccd_not_there.inner"])
def test_require_names_the_module_and_the_extra(module):
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed.*pip install 'tccd\[report\]'") as e:
        require(module, "report")
    assert isinstance(e.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("module", "missing"), [("installed_module", "absent_dependency"), ("installed_module", "installed")]
)
def test_an_installed_module_that_lacks_its_own_dependency_is_not_called_missing(
    tmp_path, monkeypatch, module, missing
):
    (tmp_path / f"{module}.py").write_text(f"import {missing}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=missing) as caught:
        require(module, "report")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_module_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("raise ImportError('libbroken.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libbroken\.so") as caught:
        require("broken_module", "report")
    assert not isinstance(caught.value, MissingExtraError)
