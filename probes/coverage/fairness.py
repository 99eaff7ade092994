"""Is a codebook fair to the sets that are compared? It must be fitted on their union, or on none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tccd.centroids.bank import CentroidBank
from tccd.errors import ConfigError

#: Chance below which it is not taken for an accident that the bank holds no picture of a set.
SURE = 1e-3


@dataclass(frozen=True)
class Compared:
    """A set that is compared.

    Attributes:
        source, split: as the data source says.
        pictures: digests of its pictures.
    """

    source: str
    split: str | None
    pictures: frozenset[str]


def check_fair(bank: CentroidBank, sets: Mapping[str, Compared]) -> list[str]:
    """Refuse a bank that was fitted on one of several sets and not on the others.

    Such a codebook has fine codes where its own set lies and coarse ones elsewhere, so its set would seem to cover
    more. It is told by the digests of the bank's pictures: the bank holds pictures of one set, and none of those
    that only another set has, though at the same rate it would. Where the bank keeps no digests, the names of its
    data decide.

    Args:
        bank: the codebooks' bank.
        sets: by name.

    Returns:
        Warnings: what could not be told, and what weakens a result of one set alone.

    Raises:
        ConfigError: the bank was fitted on one of the sets.
    """
    if not bank.pictures:
        return _by_name(bank, sets)
    seen = {name: len(bank.pictures & one.pictures) / max(len(one.pictures), 1) for name, one in sets.items()}
    if len(sets) == 1:
        name, share = next(iter(seen.items()))
        if not share:
            return []
        return [
            f"the codebooks were fitted on {100 * share:.0f} % of the pictures of {name} itself: its coverage "
            "says little by itself. Compare it with another set, on codebooks of their union"
        ]
    for name in sets:
        for other in sets:
            own = sets[other].pictures - sets[name].pictures
            missed = not bank.pictures & own
            if missed and own and seen[name] and (1 - seen[name]) ** len(own) < SURE:
                raise ConfigError(
                    f"the bank was fitted on {name} ({100 * seen[name]:.0f} % of its pictures are among the "
                    f"bank's) and on none of the {len(own)} pictures that only {other} has, so its codes would "
                    f"favour {name}. Fit one on their union: tccd fit --data ... --data ..., and give that"
                )
    return []


def _by_name(bank: CentroidBank, sets: Mapping[str, Compared]) -> list[str]:
    data, split = bank.provenance.get("data"), bank.provenance.get("split")
    same = [name for name, one in sets.items() if data == one.source and split in (None, one.split)]
    if same and len(same) < len(sets):
        raise ConfigError(
            f"the bank says that it was fitted on {data!r}, which is {same[0]} and not the other sets, so its "
            f"codes would favour {same[0]}. Fit one on their union: tccd fit --data ... --data ..., and give that"
        )
    return [
        "the bank keeps no digests of the pictures that it was fitted on, so it can't be told whether its codes "
        "favour one of the sets; fit one on their union with this version"
    ]
