"""The JSON of a coverage report.

    {"schema": "tccd-coverage/1", "title", "created", "versions", "config", "model", "codebooks", "warnings",
     "equal_n", "sets", "codes", "coverage", "density", "between", "growth", "thin", "subset"?, "vendi"?}

`equal_n` is the number of pictures at which sets are compared: that of the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from probes.report.schema import plain
from probes.report.values import Count, Field, Fraction, Interval, Part, Png, Positive, Time, Whole, check
from tccd.errors import ConfigError, DataError

SCHEMA = "tccd-coverage/1"
Codebook = Literal["text", "vision", "pairs", "facts"]


class Value(Part):
    """An estimate with its 95 % interval over draws of whole pictures; None where there were no draws."""

    value: float
    ci95: Interval | None


class Set(Part):
    """One data set. `text_tokens` are those that counted."""

    name: str
    source: str
    split: str | None
    samples: Count
    pictures: Count
    text_tokens: Whole


class Covered(Part):
    """What one set covers of one codebook; `k` and `share` are None where it is open, as that of facts is."""

    set: str
    codebook: Codebook
    k: Count | None
    n: Count
    hit: Whole
    share: Fraction | None
    rarefied: Value
    effective: Value
    unseen: Value
    redundancy: Value


class Density(Value):
    """How many different things one picture, or sample, brings."""

    set: str
    measure: str
    what: str


class Between(Part):
    """What `set` holds that `given` does not."""

    set: str
    given: str
    codebook: Codebook
    added: Whole
    novelty: Value
    more: Value


class Growth(Part):
    """Codes covered by `n` pictures, with a band."""

    set: str
    codebook: Codebook
    n: list[Count]
    value: list[Positive]
    low: list[Positive] = Field(default_factory=list)
    high: list[Positive] = Field(default_factory=list)


class Codes(Part):
    """By code, how many pictures of a set hit it."""

    set: str
    codebook: Codebook
    pictures: list[Whole]


class Shown(Part):
    """A sample to look at."""

    image: Png
    text: str


class Thin(Part):
    """A code that a set hits least, and where it is hit most."""

    set: str
    codebook: Codebook
    code: Whole
    pictures: Whole
    most: str
    most_pictures: Whole
    examples: list[Shown]


class Chosen(Part):
    """What so many samples of one set cover, chosen in one way."""

    set: str
    how: str
    samples: Count
    pictures: Count
    text: Fraction
    vision: Fraction
    pairs: Fraction


class Vendi(Part):
    """The Vendi score of one set's codes, over some of its pictures."""

    set: str
    codebook: Codebook
    pictures: Count
    value: Positive
    effective: Positive


class Result(Part):
    """The whole."""

    title: str
    created: Time
    versions: dict[str, str]
    config: dict[str, Any]
    model: dict[str, Any]
    codebooks: dict[str, Any]
    warnings: list[str]
    equal_n: Count
    sets: list[Set]
    codes: list[Codes]
    coverage: list[Covered]
    density: list[Density]
    between: list[Between]
    growth: list[Growth]
    thin: list[Thin]
    subset: list[Chosen] = Field(default_factory=list)
    vendi: list[Vendi] = Field(default_factory=list)


def checked(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result in JSON's own types, once it is found to be one.

    Raises:
        ConfigError: another schema, a missing key, or a value of the wrong kind; says where.
        DataError: a value that can't be, or a row about a set that `sets` does not describe.
    """
    if result.get("schema") != SCHEMA:
        raise ConfigError(f"result.schema = {result.get('schema')!r:.200}; expected {SCHEMA!r}")
    found = plain(result)
    check(Result, found)
    names = {one["name"] for one in found["sets"]}
    for part in ("codes", "coverage", "density", "between", "growth", "thin", "subset", "vendi"):
        for number, row in enumerate(found.get(part, ())):
            if row["set"] not in names:
                raise DataError(f"result.{part}[{number}].set = {row['set']!r:.200}; expected one of {names}")
    return found
