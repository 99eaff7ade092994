"""What a request asks for: `tccd_*` keys of its extra arguments -> validated settings.

vLLM hands `SamplingParams.extra_args` (`vllm_xargs` over HTTP) through all its processes and looks at none of
them. So front end, scheduler and runner each read a request's settings from there. `read` remembers what equal
parameters mean, so each process validates them once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any

from tccd.decoding.config import TCCDConfig
from tccd.decoding.vllm.banks import Banks
from tccd.errors import ConfigError

PREFIX = "tccd_"
#: Keys of a request: the settings of `TCCDConfig` and the bank's name.
KEYS = tuple(PREFIX + name for name in (*(f.name for f in fields(TCCDConfig)), "bank"))
#: Most characters of a request that a message quotes.
QUOTED = 200


@dataclass(frozen=True)
class Settings:
    """TCCD as one request wants it.

    Attributes:
        config: validated settings, with the layer settled.
        bank: name of one of the operator's banks.
    """

    config: TCCDConfig
    bank: str

    @property
    def layer(self) -> int:
        """Decoder layer whose output is replaced."""
        assert self.config.layer is not None
        return self.config.layer


def quoted(value: Any) -> str:
    """A value of a request as a message shows it: at most `QUOTED` characters of it."""
    if isinstance(value, str):
        shown = repr(value[:QUOTED])
        fits = len(value) <= QUOTED and len(shown) <= QUOTED
        return shown if fits else f"{shown[:QUOTED]}... ({len(value)} characters)"
    if isinstance(value, Mapping | Sequence):
        return f"a {type(value).__name__} of {len(value)} items"
    if isinstance(value, int) and value.bit_length() > 600:  # its decimal digits may be too many to print
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:QUOTED]


def listed(keys: Any) -> str:
    """Names of a request as a message shows them: at most `QUOTED` characters in all."""
    text = ", ".join(map(str, keys))
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


@lru_cache(maxsize=1024)
def nearest(key: str) -> str | None:
    """The key that another one was meant to be: `tccd_layer` for `TCCD-LAYER` or `tcd_layer`; else None."""
    name = _plain(key[:64])
    if name[:1] not in ("t", "c", "d") or SequenceMatcher(None, name[:4], "tccd").ratio() < 0.5:
        return None
    plain = {_plain(known): known for known in KEYS}
    found = get_close_matches(name, plain, n=1, cutoff=0.85)
    return plain[found[0]] if found else None


def meant(key: Any) -> bool:
    """Whether a key is TCCD's, spelt right or wrong: nobody else's begins with these letters, in any case."""
    return _plain(str(key)[:64]).startswith("tccd") or nearest(str(key)[:64]) is not None


def _plain(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def asked(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a request's extra arguments that are TCCD's, misspelt ones included."""
    return {key: value for key, value in (extra_args or {}).items() if meant(key)}


def settings(extra_args: Mapping[str, Any] | None, banks: Banks) -> Settings | None:
    """Settings of a request; equal parameters are read once a process, whoever in it asks.

    Args:
        extra_args: `SamplingParams.extra_args`, or `vllm_xargs` of an HTTP request.
        banks: what the operator loaded.

    Returns:
        None where the request doesn't ask for TCCD, or asks for what is plain decoding (`alpha_cd` 0).

    Raises:
        ConfigError: an unknown key, a wrong value, or a bank or layer that isn't there.
    """
    wanted = asked(extra_args)
    if not wanted:
        return None
    _check_keys(wanted)
    return read(tuple(sorted((key, type(value), value) for key, value in wanted.items())), banks)


@lru_cache(maxsize=256)
def read(asked: tuple[tuple[str, type, Any], ...], banks: Banks) -> Settings | None:
    """Validate and remember; errors are not remembered.

    Args:
        asked: key, type and value of each parameter, by key: 1, 1.0 and True are equal, but not the same.
        banks: what the operator loaded.

    Raises:
        ConfigError: a wrong value, or a bank or layer that isn't there.
    """
    values = {key.removeprefix(PREFIX): value for key, _, value in asked}
    name = values.pop("bank", banks.default)
    if name not in banks.names:
        raise ConfigError(f"tccd_bank is {quoted(name)}; this server has {', '.join(map(repr, banks.names))}")
    try:
        config = TCCDConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"TCCD: {error}") from error
    layers = banks.layers(name)
    if config.layer is None and len(layers) > 1:
        raise ConfigError(f"bank {name!r} has text centroids at layers {list(layers)}; name one as tccd_layer")
    if config.layer is not None and config.layer not in layers:
        raise ConfigError(f"tccd_layer is {config.layer}; bank {name!r} has text centroids at {list(layers)}")
    if config.is_off:
        return None
    layer = layers[0] if config.layer is None else config.layer
    return Settings(TCCDConfig(**{**vars(config), "layer": layer}), name)


def _check_keys(wanted: Mapping[str, Any]) -> None:
    """Refuse unknown keys, and values that no setting takes: what passes is short enough to be quoted."""
    unknown = sorted(set(wanted) - set(KEYS))
    if unknown:
        near = sorted({key for key in map(nearest, unknown[:5]) if key})
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ConfigError(f"unknown TCCD parameters {listed(unknown)}{hint}; expected some of {', '.join(KEYS)}")
    for key, value in wanted.items():
        scalar = value is None or isinstance(value, str | int | float)
        if not scalar or len(quoted(value)) > QUOTED or (isinstance(value, int) and value.bit_length() > 600):
            raise ConfigError(f"{key} is {quoted(value)}; expected one number or one word")


def tail_start(token_ids: Sequence[int], vision_ids: tuple[int, ...]) -> int | None:
    """Position of the first text-tail token: the one after the prompt's last vision token.

    Returns:
        None in a prompt without a vision token.
    """
    wanted = set(vision_ids)
    return next((i + 1 for i in range(len(token_ids) - 1, -1, -1) if token_ids[i] in wanted), None)
