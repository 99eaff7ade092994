"""Arguments of layers by name, the cache under either name, and the self-test of what goes along the tokens."""

from types import SimpleNamespace

import pytest
import torch

from tccd.decoder import find_decoder, first_tensor
from tccd.engine.arguments import by_name, cache_from, cache_of, follows_tokens, with_cache
from tccd.errors import UnsupportedModelError
from tests.census.architectures import architecture
from tests.census.pictures import batch_of
from tests.tiny import Row


def layer(hidden_states, per_layer_input=None, position_embeddings=None, **kwargs):
    return hidden_states


def test_arguments_by_place_get_their_names():
    assert by_name(layer, ("h", "p"), {"position_embeddings": "r", "extra": 1}) == (
        "h",
        {"per_layer_input": "p", "position_embeddings": "r", "extra": 1},
    )
    assert by_name(layer, ("h",), {"extra": 1}) == ("h", {"extra": 1})
    assert by_name(layer, (), {"hidden_states": "h", "extra": 1}) == ("h", {"extra": 1})


@pytest.mark.parametrize("forward", [lambda hidden, *rest: hidden, lambda hidden, one: hidden])
def test_an_argument_without_a_name_is_refused(forward):
    with pytest.raises(UnsupportedModelError, match="takes 3 arguments by place; its signature names 2"):
        by_name(forward, ("h", 1, 2), {})


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_goes_by_either_name(name):
    assert cache_of({name: "c", "x": 1}) == "c"
    assert cache_of({name: None}) is None
    assert with_cache({name: "c", "x": 1}, "d") == {name: "d", "x": 1}
    assert cache_from(SimpleNamespace(**{name: "c"})) == "c"


def test_no_cache_at_all():
    assert cache_of({}) is None
    assert with_cache({}, "d") == {"past_key_values": "d"}
    assert cache_from(SimpleNamespace()) is None


BATCH, N, WIDTH = 2, 6, 8


def causal_mean(states):
    return states.cumsum(1) / torch.arange(1, states.shape[1] + 1)[None, :, None]


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


HIDDEN = seeded(BATCH, N, WIDTH)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("width", [(), (WIDTH,)])
def test_one_row_a_token_is_told(batch, width):
    def run(value):
        return causal_mean(HIDDEN * (value if value.ndim == 3 else value[..., None]))

    assert follows_tokens(run, seeded(batch, N, *width)) is True


def test_as_many_weights_as_tokens_are_no_row_a_token():
    def run(value):  # N weights, of which each position takes all
        return HIDDEN * (value * torch.arange(1, N + 1)).sum(-1)[:, None, None]

    assert follows_tokens(run, seeded(BATCH, N)) is False


def test_a_weight_for_each_position_looked_up_from_the_end_is_no_row_a_token():
    assert follows_tokens(lambda value: HIDDEN * value.flip(1)[..., None], seeded(BATCH, N)) is False


def test_kinds_of_tokens_that_few_rows_differ_in():
    kinds = torch.zeros(BATCH, N, dtype=torch.long)
    kinds[1, 2:4] = 1
    assert follows_tokens(lambda value: causal_mean(HIDDEN * (1 + value[..., None])), kinds) is True
    assert follows_tokens(lambda value: HIDDEN + value.float().var(-1)[:, None, None] * 0, kinds) is True  # unread


@pytest.mark.parametrize("kinds", [[[3, 3, 3, 3]], [[1, 3, 3, 3]]])
def test_rows_that_are_alike_tell_nothing(kinds):
    assert follows_tokens(lambda value: pytest.fail("nothing to try"), torch.tensor(kinds)) is None


@pytest.mark.parametrize(
    ("name", "argument"), [("gemma4", "per_layer_input"), ("ernie4_5_vl_moe", "moe_mm_token_type_ids")]
)
def test_an_argument_that_goes_along_the_tokens_is_told_by_trying(name, argument):
    row = architecture(name)
    model = row.build()
    batch, layers = batch_of(row, model, [Row(), Row(images=0, before=6)]), find_decoder(model).layers
    calls = {}

    def note(module, args, kwargs):
        calls[module] = by_name(module.forward, args, kwargs)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    for layer in layers:
        hidden, kwargs = calls[layer]

        def run(value, forward=layer.forward, hidden=hidden, kwargs=kwargs):
            with torch.no_grad():
                return first_tensor(forward(hidden, **with_cache(kwargs, None) | {argument: value}))

        def weighted(value, run=run, given=kwargs[argument]):
            weights = torch.arange(1, value.shape[1] + 1)
            rows = value.reshape(*value.shape[:2], -1).sum(-1) * weights
            return run(given) * rows.sum(-1)[:, None, None]

        assert follows_tokens(run, kwargs[argument]) is True
        assert follows_tokens(weighted, kwargs[argument]) is False
