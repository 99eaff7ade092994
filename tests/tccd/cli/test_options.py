"""How options are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tccd.cli.options import parse_columns, parse_layers, settle_layers, single_layers
from tccd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("text=12,vision=16", {"text": (12,), "vision": (16,)}),
        ("vision=16", {"vision": (16,)}),
        ("text=3,1,2,vision=0", {"text": (1, 2, 3), "vision": (0,)}),
        (" text = 8-10 , 9, 12 ", {"text": (8, 9, 10, 12)}),
        ("text=all,vision=2", {"text": None, "vision": (2,)}),
        ("all", {"text": None, "vision": None}),
        ("4,8-9", {"text": (4, 8, 9), "vision": (4, 8, 9)}),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't read ''"),
        ("1x", "can't read '1x'"),
        ("text", "can't read 'text'"),
        ("text=", "can't read 'text='"),
        ("text=-1", "can't read 'text=-1'"),
        ("text=1,,2", "can't read ''"),
        ("text=x", "can't read 'text=x'"),
        ("text=1,all", "can't read 'all'"),
        ("text=all,1", "can't read '1'"),
        ("text=5-3", "the range 5-3 is empty; expected 3-5"),
        ("vis=1", "unknown modality 'vis'; expected text or vision"),
        ("text=1,text=2", "text stands twice"),
        ("text=99999999999", "can't read"),
    ],
)
def test_bad_layers(text, message):
    with pytest.raises(ConfigError, match="--layers") as caught:
        parse_layers(text)
    assert message in str(caught.value)


@given(st.text(alphabet="text=vision,0123-al ", max_size=20))
def test_any_layers_are_read_or_refused(text):
    try:
        layers = parse_layers(text)
    except ConfigError:
        return
    assert set(layers) <= {"text", "vision"}
    assert all(found is None or (found and list(found) == sorted(set(found))) for found in layers.values())


def test_layers_of_a_model():
    assert settle_layers({"text": None, "vision": (1,)}, 3) == {"text": (0, 1, 2), "vision": (1,)}
    assert single_layers({"text": (3,), "vision": (1,)}) == {"text": 3, "vision": 1}
    with pytest.raises(ConfigError, match="expected one layer for text"):
        single_layers({"text": (3, 4)})


def test_columns():
    assert parse_columns(["prompt=frage", "answer="]) == {"prompt": "frage", "answer": None}
    assert parse_columns([]) is None
    for bad in ("prompt", "=x"):
        with pytest.raises(ConfigError, match="expected FIELD=NAME"):
            parse_columns([bad])
