"""A bank that was fitted on one of the sets is refused wherever it can be told, and no other."""

from __future__ import annotations

import pytest
import torch

from probes.coverage.fairness import Compared, check_fair
from tccd.centroids.bank import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.errors import ConfigError

MODEL = ModelIdentity("drawn", None, "llava", 4, 3, None)


def bank(**provenance):
    return CentroidBank.from_arrays(MODEL, {("text", 1): torch.eye(4), ("vision", 1): torch.eye(4)}, **provenance)


def fitted_on(pictures):
    return bank(pictures=[f"{p:016x}" for p in pictures])


def sets(**pictures):
    return {name: Compared(name, "train", frozenset(f"{p:016x}" for p in ps)) for name, ps in pictures.items()}


def test_one_of_two_sets_is_refused():
    with pytest.raises(ConfigError, match=r"fitted on a \(50 % of its pictures.*only b has.*tccd fit --data"):
        check_fair(fitted_on(range(0, 100, 2)), sets(a=range(100), b=range(200, 300)))


def test_the_union_is_accepted_and_so_is_a_third():
    assert check_fair(fitted_on(range(0, 300, 2)), sets(a=range(100), b=range(200, 300))) == []
    assert check_fair(fitted_on(range(900, 999)), sets(a=range(100), b=range(200, 300))) == []


def test_a_part_of_the_other_set_is_its_own_union():
    assert check_fair(fitted_on(range(100)), sets(all=range(100), part=range(30))) == []


def test_an_accident_is_no_proof():
    assert check_fair(fitted_on([5, *range(900, 999)]), sets(a=range(1000, 1100), b=[5, *range(50)])) == []


def test_a_set_alone_is_warned_of():
    (told,) = check_fair(fitted_on(range(50)), sets(a=range(100)))
    assert "50 % of the pictures of a itself" in told
    assert check_fair(fitted_on(range(500, 600)), sets(a=range(100))) == []


def test_without_digests_names_decide():
    with pytest.raises(ConfigError, match="fitted on 'a', which is a and not the other sets"):
        check_fair(bank(data="a", split="train"), sets(a=range(9), b=range(9, 18)))
    (told,) = check_fair(bank(data="c"), sets(a=range(9), b=range(9, 18)))
    assert "no digests" in told
