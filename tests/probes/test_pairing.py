"""Which two cells are compared: by where they stand, and the same ones in the probe and in its report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probes.pairing import choose_pair
from probes.report.headline import headline


def cell(modality, layer, bank="a", k=4, alpha=0.0, segment=None, cost=0.1):
    segment = segment or ("all" if modality == "text" else "tokens")
    place = {"modality": modality, "layer": layer, "bank": bank, "k": k, "alpha_interp": alpha}
    return place | {"segment": segment, "model": "m", "cost": cost}


def places(cells, chosen):
    return [tuple(cells[i][key] for key in ("modality", "layer", "bank", "segment")) for i in chosen]


def test_the_middle_of_the_layers_in_common_and_not_the_largest_cost():
    cells = [cell(m, layer, cost=layer) for m in ("text", "vision") for layer in (3, 1, 2)]
    chosen = choose_pair(cells)
    assert places(cells, chosen.pair.values()) == [("text", 2, "a", "all"), ("vision", 2, "a", "tokens")]
    assert len(chosen.slice) == 6


def test_without_a_layer_in_common_each_has_its_middle():
    cells = [cell("text", layer) for layer in (1, 2, 3)] + [cell("vision", 7)]
    assert [cells[i]["layer"] for i in choose_pair(cells).pair.values()] == [2, 7]
    assert [cells[i]["layer"] for i in choose_pair(cells, {"layer": 3, "vision_layer": 7}).pair.values()] == [3, 7]
    assert set(choose_pair(cells[:3]).pair) == {"text"}


def test_the_segment_asked_for_first_is_shown_as_it_is_compared():
    cells = [cell("text", 1, segment=s, cost=c) for s, c in (("question", 0.2), ("all", 0.5))]
    cells.append(cell("vision", 1))
    pair = choose_pair(cells).pair
    shown = headline({"cells": cells, "ratio": {"m": {"layer": 1, "ratio": 2.0}}}, "m")
    assert shown.text is cells[pair["text"]]
    assert shown.segment == "question"


grids = st.lists(
    st.builds(
        cell,
        st.sampled_from(["text", "vision"]),
        st.integers(0, 4),
        st.sampled_from("ab"),
        st.sampled_from([4, 8]),
        st.sampled_from([0.0, 0.4]),
    ),
    min_size=1,
    max_size=24,
)


@given(grids)
def test_what_is_compared_stands_in_one_slice_and_costs_make_no_difference(cells):
    chosen = choose_pair(cells)
    assert set(chosen.pair.values()) <= set(chosen.slice) <= set(chosen.doses)
    assert len({(cells[i]["bank"], cells[i]["k"]) for i in chosen.doses}) == 1
    assert len({cells[i]["alpha_interp"] for i in chosen.slice}) == 1
    assert choose_pair([c | {"cost": -i} for i, c in enumerate(cells)]) == chosen
    shown = headline({"cells": cells}, "m")
    for modality in ("text", "vision"):
        assert getattr(shown, modality) is (cells[chosen.pair[modality]] if modality in chosen.pair else None)
