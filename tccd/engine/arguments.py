"""What a decoder layer is called with: by name, the cache under either name, and what has one row per token.

No layer is known by its family. Its signature names its arguments. A self-test tells whether an argument that the
engine has never heard of has one row per token: two of its rows change places, and nothing before them may change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tccd.errors import UnsupportedModelError

#: What transformers calls the cache that a layer or a model is given: up to 5.23, and from 5.24 on.
CACHE_NAMES = ("past_key_values", "cache")


def cache_of(given: Mapping[str, Any]) -> Any:
    """The cache among arguments by name, or None."""
    return next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)


def with_cache(given: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """Arguments by name with another cache, under the name that the release uses."""
    return dict(given) | {next((name for name in CACHE_NAMES if name in given), CACHE_NAMES[0]): cache}


def cache_from(output: Any) -> Any:
    """The cache that a model's output holds, or None."""
    return next(
        (found for name in reversed(CACHE_NAMES) if (found := getattr(output, name, None)) is not None), None
    )


def by_name(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A layer's hidden states, and all of its other arguments by name.

    Args:
        forward: the layer's forward.
        args, kwargs: what it was called with.

    Raises:
        UnsupportedModelError: an argument that was given by place has no name.
    """
    named = dict(kwargs)
    if not args:
        return named.pop("hidden_states"), named
    if len(args) > 1:
        names = list(inspect.signature(forward).parameters.values())[: len(args)]
        if len(names) < len(args) or any(name.kind is not name.POSITIONAL_OR_KEYWORD for name in names):
            raise UnsupportedModelError(
                f"a decoder layer takes {len(args)} arguments by place; its signature names {len(names)} of them"
            )
        named |= {name.name: value for name, value in zip(names[1:], args[1:], strict=True)}
    return args[0], named


def follows_tokens(run: Callable[[Tensor], Tensor], value: Tensor) -> bool | None:
    """Self-test: whether an argument of a causal layer has one row per token.

    Its last row changes places with another that differs. If rows stand for tokens, no output before the two
    changes. If they stand for something else (say, for heads, of which there happen to be as many), the first
    outputs change too. An argument that changes nothing passes: the layer does not read it.

    Args:
        run: the layer with `value` in the argument's place; returns its output, shape (batch, n, hidden).
        value: shape (batch, n, ...).

    Returns:
        None where it can't be told: no row but the first differs from the last one.
    """
    n = value.shape[1]
    differs = (value != value[:, -1:]).reshape(*value.shape[:2], -1).any(-1)
    columns = differs.any(0).nonzero().flatten().tolist()
    if not columns or columns[-1] == 0:
        return None
    early = columns[-1]
    order = list(range(n))
    order[early], order[-1] = order[-1], order[early]
    rows = differs[:, early] if value.shape[0] > 1 else slice(None)
    before, after = (run(one)[rows][:, :early] for one in (value, value[:, order]))
    if not before.numel():
        return None
    tolerance = 1e-4 * float(before.abs().nan_to_num().amax())
    return torch.allclose(before, after, rtol=1e-3, atol=tolerance, equal_nan=True)


def has_row_per_token(index: int, name: str, value: Tensor, run: Callable[[Tensor], Tensor]) -> bool:
    """`follows_tokens` of an argument of a decoder layer, at a prompt.

    Args:
        index: the layer.
        name: the argument's.
        value, run: as for `follows_tokens`.

    Raises:
        UnsupportedModelError: it can't be told.
    """
    found = follows_tokens(run, value)
    if found is None:
        raise UnsupportedModelError(
            f"decoder layer {index} takes {name!r} of shape {tuple(value.shape)}, the same for every "
            "token of this prompt, so it can't be told whether it has one row a token"
        )
    return found
