"""What a request asks for: `tccd_*` keys of its extra arguments -> validated settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tccd.decoding.config import TCCDConfig
from tccd.decoding.vllm.banks import Banks
from tccd.errors import ConfigError

PREFIX = "tccd_"
#: Keys of a request: the settings of `TCCDConfig` and the bank's name.
KEYS = tuple(PREFIX + name for name in (*(f.name for f in fields(TCCDConfig)), "bank"))


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


def asked(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `tccd_*` keys of a request's extra arguments."""
    return {key: value for key, value in (extra_args or {}).items() if str(key).startswith(PREFIX)}


def settings(extra_args: Mapping[str, Any] | None, banks: Banks) -> Settings | None:
    """Settings of a request.

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
    unknown = sorted(set(wanted) - set(KEYS))
    if unknown:
        raise ConfigError(f"unknown TCCD parameters {', '.join(unknown)}; expected some of {', '.join(KEYS)}")
    values = {key.removeprefix(PREFIX): value for key, value in wanted.items()}
    name = values.pop("bank", banks.default)
    if name not in banks.names:
        raise ConfigError(f"tccd_bank is {name!r}; this server has {', '.join(map(repr, banks.names))}")
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


def tail_start(token_ids: Sequence[int], vision_ids: tuple[int, ...]) -> int | None:
    """Position of the first text-tail token: the one after the prompt's last vision token.

    Returns:
        None in a prompt without a vision token.
    """
    wanted = set(vision_ids)
    return next((i + 1 for i in range(len(token_ids) - 1, -1, -1) if token_ids[i] in wanted), None)
