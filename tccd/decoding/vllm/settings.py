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
from tccd.decoding.vllm import prompts
from tccd.decoding.vllm.banks import Banks
from tccd.errors import ConfigError
from tccd.modality import MODALITIES, Modality

PREFIX = "tccd_"
#: Keys of a request: the settings of `TCCDConfig`, the bank's name, the reference and its prompt.
KEYS = tuple(PREFIX + name for name in (*(f.name for f in fields(TCCDConfig)), "bank", "reference", "prompt"))
#: Most characters of a request that a message quotes, and of the JSON that describes a prompt.
QUOTED, LONGEST_PROMPT = 200, 2**16
#: References that move states to centroids: whose, and what they keep of a state unless the request says.
CENTROIDS: dict[str, tuple[Modality, float]] = {"text-centroid": ("text", 0.4), "vision-centroid": ("vision", 0.0)}
#: What a request may contrast with.
REFERENCES = (*CENTROIDS, "no-vision", "blank-image", "prompt")
#: References that are in transformers only, and why.
ELSEWHERE = {
    "mean-vision": "in the image's place it sees keys and values of no token, and a block of vLLM's cache holds "
    "those of tokens that were computed",
    "noised-image": "its pixels would have to be made anew in each process",
    "early-exit": "its layers would have to pass the head of a compiled model",
}


#: What a request without an image is told, where its reference needs one.
NO_IMAGE = (
    "TCCD contrasts against the prompt's text after its last image, and this prompt has no image; send one, or "
    "leave the tccd_* parameters out"
)


@dataclass(frozen=True)
class Settings:
    """A contrast as one request wants it.

    Attributes:
        config: validated settings, with the layer settled where the reference has one.
        bank: name of one of the operator's banks; empty where the reference needs none.
        reference: one of `REFERENCES`.
        prompt: JSON that describes the prompt of the reference `prompt`.
    """

    config: TCCDConfig
    bank: str
    reference: str = "text-centroid"
    prompt: str | None = None

    @property
    def modality(self) -> Modality | None:
        """Whose states are moved to centroids; None where the reference moves none."""
        return CENTROIDS[self.reference][0] if self.reference in CENTROIDS else None

    @property
    def layer(self) -> int:
        """Decoder layer whose output is replaced."""
        assert self.config.layer is not None
        return self.config.layer


def served(banks: Banks) -> tuple[str, ...]:
    """References that a server with these banks takes."""
    fitted = {modality for name in banks.names for modality in MODALITIES if banks.layers(name, modality)}
    return tuple(name for name in REFERENCES if name not in CENTROIDS or CENTROIDS[name][0] in fitted)


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
    reference = values.pop("reference", "text-centroid")
    if reference in ELSEWHERE:
        raise ConfigError(f"tccd_reference {reference!r} is in transformers only: {ELSEWHERE[reference]}")
    if reference not in REFERENCES:
        raise ConfigError(f"tccd_reference is {quoted(reference)}; expected one of {', '.join(REFERENCES)}")
    prompt = values.pop("prompt", None)
    if (prompt is None) == (reference == "prompt"):
        raise ConfigError(
            "tccd_reference 'prompt' needs tccd_prompt, and no other reference takes one; it is JSON such as "
            '{"text": "..."} or {"messages": [...]}'
        )
    if prompt is not None:
        prompts.parse(prompt)
    if reference in CENTROIDS:
        return _with_centroids(values, banks, reference)
    misplaced = [PREFIX + name for name in ("bank", "layer", "alpha_interp") if name in values]
    if misplaced:
        raise ConfigError(f"{', '.join(misplaced)}: tccd_reference {reference!r} needs no bank, so it takes none")
    config = _config(values)
    off = config.alpha_cd == 0 and config.beta == 0
    return None if off else Settings(config, "", reference, prompt)


def _config(values: Mapping[str, Any]) -> TCCDConfig:
    try:
        return TCCDConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"TCCD: {error}") from error


def _with_centroids(values: dict[str, Any], banks: Banks, reference: str) -> Settings | None:
    modality, kept = CENTROIDS[reference]
    if not banks.names:
        raise ConfigError(f"tccd_reference {reference!r} needs a bank, and this server has none")
    name = values.pop("bank", banks.default)
    if name not in banks.names:
        raise ConfigError(f"tccd_bank is {quoted(name)}; this server has {', '.join(map(repr, banks.names))}")
    config = _config({"alpha_interp": kept} | values)
    layers = banks.layers(name, modality)
    if config.layer is None and len(layers) > 1:
        raise ConfigError(
            f"bank {name!r} has {modality} centroids at layers {list(layers)}; name one as tccd_layer"
        )
    if not layers or (config.layer is not None and config.layer not in layers):
        raise ConfigError(
            f"tccd_layer is {config.layer}; bank {name!r} has {modality} centroids at {list(layers)}"
        )
    if config.is_off:
        return None
    layer = layers[0] if config.layer is None else config.layer
    return Settings(TCCDConfig(**{**vars(config), "layer": layer}), name, reference)


def _check_keys(wanted: Mapping[str, Any]) -> None:
    """Refuse unknown keys, and values that no setting takes: what passes is short enough to be quoted."""
    unknown = sorted(set(wanted) - set(KEYS))
    if unknown:
        near = sorted({key for key in map(nearest, unknown[:5]) if key})
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ConfigError(f"unknown TCCD parameters {listed(unknown)}{hint}; expected some of {', '.join(KEYS)}")
    for key, value in wanted.items():
        scalar = value is None or isinstance(value, str | int | float)
        if key == PREFIX + "prompt":
            if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
                raise ConfigError(
                    f"{key} is {quoted(value)}; expected JSON of at most {LONGEST_PROMPT} characters"
                )
            continue
        if not scalar or len(quoted(value)) > QUOTED or (isinstance(value, int) and value.bit_length() > 600):
            raise ConfigError(f"{key} is {quoted(value)}; expected one number or one word")


def tail_start(token_ids: Sequence[int], vision_ids: tuple[int, ...]) -> int | None:
    """Position of the first text-tail token: the one after the prompt's last vision token.

    Returns:
        None in a prompt without a vision token.
    """
    wanted = set(vision_ids)
    return next((i + 1 for i in range(len(token_ids) - 1, -1, -1) if token_ids[i] in wanted), None)
