"""Releases of transformers that nobody tested."""

from __future__ import annotations

import warnings

import pytest

from tccd import versions


@pytest.mark.parametrize(
    ("version", "newer"),
    [("5.16.0", False), ("5.24.0", False), ("5.24.9", False), ("5.25.0", True), ("6.0", True), ("next", True)],
)
def test_what_is_newer(version: str, newer: bool) -> None:
    assert versions.is_newer(version) is newer


def test_a_newer_release_warns_once_with_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.transformers, "__version__", "9.1.0")
    versions.warn_of_transformers.cache_clear()
    with pytest.warns(UserWarning, match=r"9\.1\.0 is newer .* \(5\.16 to 5\.24\).*pip install"):
        versions.warn_of_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_of_transformers()
    versions.warn_of_transformers.cache_clear()
