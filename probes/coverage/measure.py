"""Tallies of several sets -> what is reported of each, and of each beside the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.coverage.counts import (
    added,
    covered,
    growth,
    hidden_variance,
    hill,
    novelty,
    redundancy,
    sizes,
    unseen,
)
from probes.coverage.store import Store, pairs
from probes.coverage.tally import DRAWS, Estimate, Sums, Tally, Weights, around, difference, draws_for, estimate

Facts = Callable[[int], Sequence[tuple[str, ...]]]


@dataclass
class Tallies:
    """All that is gathered of one set.

    Attributes:
        text, vision, pairs: tallies of the codebooks.
        facts: of facts, over the union of all sets; None where a set has none.
        density: sums by measure.
        samples: their number.
        examples: by picture's number, which sample shows it, for those that a tally shows.
    """

    text: Tally
    vision: Tally
    pairs: Tally
    facts: Tally | None
    density: dict[str, Sums]
    samples: int = 0
    examples: dict[int, int] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """Distinct pictures."""
        return self.text.n

    def codebooks(self) -> dict[str, Tally]:
        """Tallies by the name that a report gives them."""
        found = {"vision": self.vision, "text": self.text, "pairs": self.pairs}
        return found if self.facts is None else {**found, "facts": self.facts}


class FactNumbers(dict[tuple[str, ...], int]):
    """Facts of all sets -> their numbers; one that is new gets the next."""

    def __missing__(self, fact: tuple[str, ...]) -> int:
        self[fact] = len(self)
        return self[fact]


def gather(
    store: Store,
    k: Mapping[str, int],
    facts: Facts | None = None,
    numbers: FactNumbers | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Tallies:
    """Count a set, picture by picture, in memory that does not grow with it.

    Args:
        store: the set's codes.
        k: codes by codebook: `text`, `vision`, `pairs`.
        facts: of each sample, by its number.
        numbers: of facts, shared by all sets.
        draws: bootstrap draws of pictures.
        seed: of the draws.
    """
    n = len(np.unique(store.digests))
    weights = Weights(n, draws, seed)
    density = {name: Sums(draws) for name in ("text", "vision", "pairs", "tokens")}
    tallies = {name: Tally(k[name], draws_for(k[name], draws)) for name in ("text", "vision", "pairs")}
    open_ = None if facts is None else Tally(0, draws)
    found = Tallies(tallies["text"], tallies["vision"], tallies["pairs"], open_, density)
    if facts is not None:
        density |= {"facts": Sums(draws), "facts_samples": Sums(draws)}
    numbers = FactNumbers() if numbers is None else numbers
    room = 4096 + 2 * Tally.SHOWN * (k["text"] + k["vision"])
    for picture, weight in zip(store.pictures(), weights, strict=True):
        both = pairs(picture.text, picture.vision, k["vision"])
        for name, codes in (("text", picture.text), ("vision", picture.vision), ("pairs", both)):
            tallies[name].add(codes, weight)
            density[name].add(len(codes), 1, weight)
        density["tokens"].add(100 * len(picture.text), picture.tokens, weight)
        if facts is not None and found.facts is not None:
            told = [{numbers[fact] for fact in facts(sample)} for sample in picture.samples]
            mine = np.array(sorted(set().union(*told)), dtype=np.int64)
            found.facts.grow(len(numbers))
            found.facts.add(mine, weight)
            density["facts"].add(len(mine), 1, weight)
            density["facts_samples"].add(sum(map(len, told)), len(told), weight)
        found.samples += len(picture.samples)
        found.examples[picture.number] = picture.samples[0]
        if len(found.examples) > room:
            _forget(found)
    _forget(found)
    return found


def _forget(found: Tallies) -> None:
    """Keep the examples of pictures that are shown, no others."""
    shown = {int(n) for tally in (found.text, found.vision) for n in np.unique(tally.shown)}
    found.examples = {n: sample for n, sample in found.examples.items() if n in shown}


def equalise(sets: Mapping[str, Tallies], codes: int) -> None:
    """Give the tallies of facts of all sets the same codes: those of the union."""
    for one in sets.values():
        if one.facts is not None:
            one.facts.grow(codes)
            for name in ("counts", "drawn", "shown"):
                setattr(one.facts, name, getattr(one.facts, name)[:codes])


def rows(sets: Mapping[str, Tallies], least: int = 1) -> dict[str, Any]:
    """What a report holds of the sets.

    Args:
        sets: by name.
        least: pictures that make a code covered.

    Returns:
        `equal_n`, `codes`, `coverage`, `density`, `between` and `growth`; see `probes.coverage.schema`.
    """
    equal = min(one.pictures for one in sets.values())
    cells = [
        _coverage(name, codebook, tally, equal, least)
        for name, one in sets.items()
        for codebook, tally in one.codebooks().items()
    ]
    between = [
        _between(name, other, codebook, one.codebooks()[codebook], sets[other].codebooks()[codebook], equal, least)
        for name, one in sets.items()
        for other in sets
        if other != name
        for codebook in one.codebooks()
        if codebook in sets[other].codebooks()
    ]
    return {
        "equal_n": equal,
        "codes": [
            {"set": name, "codebook": codebook, "pictures": one.codebooks()[codebook].counts.tolist()}
            for name, one in sets.items()
            for codebook in ("vision", "text")
        ],
        "coverage": cells,
        "density": [row for name, one in sets.items() for row in _density(name, one)],
        "between": between,
        "growth": [
            _growth(name, codebook, tally, least)
            for name, one in sets.items()
            for codebook, tally in one.codebooks().items()
        ],
    }


def _rarefied(tally: Tally, size: int, least: int, open_: bool) -> Estimate:
    """Codes covered by `size` pictures: as a share of the codebook, or as a number where it is open."""
    scale = 1.0 if open_ else 1 / len(tally.counts)
    return estimate(
        tally,
        lambda counts: growth(counts, tally.n, [size], least)[0],
        scale,
        None if open_ else 1.0,
        hidden_variance(tally.counts, tally.n, size) if least == 1 else 0.0,
    )


def _coverage(name: str, codebook: str, tally: Tally, equal: int, least: int) -> dict[str, Any]:
    open_ = codebook == "facts"
    codes = len(tally.counts)
    hit = covered(tally.counts, least)
    return {
        "set": name,
        "codebook": codebook,
        "k": None if open_ else codes,
        "n": tally.n,
        "hit": hit,
        "share": None if open_ else hit / codes,
        "rarefied": _rarefied(tally, equal, least, open_).told(),
        "effective": estimate(tally, hill, top=None if open_ else float(codes)).told(),
        "unseen": estimate(tally, unseen, top=1.0).told(),
        "redundancy": estimate(tally, lambda counts: redundancy(counts, tally.n, equal), top=1.0).told(),
    }


#: Density by the key that a report gives it: which sums, and what they say.
DENSITIES = {
    "vision": "distinct vision codes a picture",
    "text": "distinct text codes a picture",
    "pairs": "distinct pairs a picture",
    "tokens": "distinct text codes per 100 text tokens, by picture",
    "facts": "distinct facts a picture",
    "facts_samples": "distinct facts a sample",
}


def _density(name: str, one: Tallies) -> list[dict[str, Any]]:
    return [
        {"set": name, "measure": key, "what": DENSITIES[key], **sums.estimate().told()}
        for key, sums in one.density.items()
    ]


def _between(
    name: str, other: str, codebook: str, mine: Tally, given: Tally, equal: int, least: int
) -> dict[str, Any]:
    """What a set holds that another does not, and how much more it covers at an equal number of pictures."""
    open_ = codebook == "facts"
    drawn = np.array(
        [novelty(a, mine.n, b, given.n, equal) for a, b in zip(mine.drawn.T, given.drawn.T, strict=True)]
    )
    more = difference(_rarefied(mine, equal, least, open_), _rarefied(given, equal, least, open_))
    return {
        "set": name,
        "given": other,
        "codebook": codebook,
        "added": added(mine.counts, given.counts, least),
        "novelty": around(novelty(mine.counts, mine.n, given.counts, given.n, equal), drawn, 1.0).told(),
        "more": more.told(),
    }


def _growth(name: str, codebook: str, tally: Tally, least: int) -> dict[str, Any]:
    at = sizes(tally.n)
    scale = 1.0 if codebook == "facts" else 1 / len(tally.counts)
    values = scale * np.array(growth(tally.counts, tally.n, at, least))
    row: dict[str, Any] = {"set": name, "codebook": codebook, "n": at, "value": values.tolist()}
    if tally.draws:
        drawn = scale * np.array([growth(column, tally.n, at, least) for column in tally.drawn.T])
        hidden = [hidden_variance(tally.counts, tally.n, size) if least == 1 else 0.0 for size in at]
        error = np.hypot(drawn.std(0, ddof=1), scale * np.sqrt(hidden))
        top = np.inf if codebook == "facts" else 1.0
        row |= {"low": np.maximum(values - 1.96 * error, 0).tolist()}
        row |= {"high": np.minimum(values + 1.96 * error, top).tolist()}
    return row


def thin(sets: Mapping[str, Tallies], codebook: str, count: int) -> list[dict[str, Any]]:
    """The codes that each set hits least, for its size, beside where they are hit most.

    Args:
        sets: by name.
        codebook: "text" or "vision".
        count: codes of each set, at most.

    Returns:
        Rows with `set`, `codebook`, `code`, `pictures` (of the set that hit it), `most` (the set where most do),
        `most_pictures`, and `shown`: samples of that set to look at, by number.
    """
    found = []
    names = list(sets)
    shares = np.stack([one.codebooks()[codebook].counts / max(one.pictures, 1) for one in sets.values()])
    held: NDArray[np.int64] = np.flatnonzero(shares.max(0) > 0)
    for row, name in enumerate(names):
        mine = shares[row, held]
        others = shares[:, held].max(0)
        # Thin here and thick elsewhere first; of one set alone, simply the thinnest.
        order = np.lexsort((held, -(others - mine), mine))
        for code in held[order[:count]].tolist():
            most = names[int(shares[:, code].argmax())]
            tally = sets[most].codebooks()[codebook]
            found.append(
                {
                    "set": name,
                    "codebook": codebook,
                    "code": code,
                    "pictures": int(sets[name].codebooks()[codebook].counts[code]),
                    "most": most,
                    "most_pictures": int(tally.counts[code]),
                    "shown": [sets[most].examples[n] for n in tally.shown[code].tolist() if n >= 0],
                }
            )
    return found
