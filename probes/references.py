"""The references that a probe can contrast with: their names, what each costs, and how they are written.

Nothing here knows a model; `probes.replacement.sources` makes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ImageColor

from tccd.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """One kind of reference.

    Attributes:
        name: as a user writes it.
        cost: what it costs beside plain decoding, in words.
        rank: of what it costs; the cheaper of two kinds has the lower one.
        parameter: what may follow its name behind `=`; empty where nothing may.
        default: the parameter where nothing follows; None where something has to.
        needs_bank: whether it is made of a bank.
    """

    name: str
    cost: str
    rank: int
    parameter: str = ""
    default: str | None = None
    needs_bank: bool = False


@dataclass(frozen=True)
class Term:
    """One reference of those that are contrasted with at once.

    Attributes:
        kind: of the reference.
        value: of its kind's parameter; empty where it has none.
        weight: of either sign.
    """

    kind: Kind
    value: str
    weight: float = 1.0


TEXT, VISION = "text-centroid", "vision-centroid"

#: Every kind by name, the cheapest first.
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("early-exit", "a row of the head for each layer that may be the exit", 0, "layers", "low"),
        Kind(TEXT, "the tail's rows, above its layer", 1, needs_bank=True),
        Kind("no-vision", "the tail's rows", 2),
        Kind("mean-vision", "the tail's rows", 3, needs_bank=True),
        Kind("blank-image", "the tail's rows; a second pass the first time", 4, "color", "grey"),
        Kind(VISION, "the rows of image and tail, above its layer", 5, needs_bank=True),
        Kind("noised-image", "a second pass over image and prompt", 6, "step", "999"),
        Kind("prompt", "a second pass over image and prompt, and over every token", 7, "words"),
    )
}

#: The names of what references are made with, in the order that they are shown in.
PARAMETERS = ("weights", "layer", "k", "bank", "alpha_interp", "color", "step", "layers", "words")

#: The names of the rule's settings.
RULE = ("alpha_cd", "beta", "gate", "gate_threshold", "gate_ramp")

_WEIGHT = re.compile(r"\s*([+-]?\d+(?:\.\d*)?)\s*\*(.*)", re.DOTALL)


def parse(text: str) -> tuple[Term, ...]:
    """`blank-image=black`, or several at once with a weight each: `no-vision+-0.5*text-centroid`.

    What follows `prompt=` are words as they are; in them `{prompt}` stands for the question.

    Returns:
        Each reference; its parameter is the kind's default where nothing follows the name.

    Raises:
        ConfigError: an unknown name, one that stands twice, a parameter that the kind does not take, or none where
            it needs one.
    """
    terms = tuple(_term(part, text) for part in ([text] if _is_words(text) else text.split("+")))
    names = [term.kind.name for term in terms]
    if len(set(names)) < len(names):
        raise ConfigError(f"reference {text!r}; expected each name once")
    return terms


def _is_words(text: str) -> bool:
    return text.lstrip().startswith("prompt=")


def _term(part: str, text: str) -> Term:
    found = _WEIGHT.fullmatch(part)
    weight, part = (float(found[1]), found[2]) if found else (1.0, part)
    if not 0 < abs(weight) < 1e30:
        raise ConfigError(f"reference {text!r}: a weight is {weight:g}; expected a finite number other than 0")
    name, given, value = part.partition("=")
    name, value = name.strip(), value.strip()
    if name not in KINDS:
        raise ConfigError(
            f"reference {text!r}: no reference is called {name!r}; expected one of {', '.join(KINDS)}"
        )
    kind = KINDS[name]
    if given and not kind.parameter:
        raise ConfigError(f"reference {text!r}: {name} takes nothing behind its name; expected {name}")
    if (given and not value) or (not given and kind.parameter and kind.default is None):
        raise ConfigError(f"reference {text!r}; expected {name}={kind.parameter.upper()}")
    return Term(kind, value if given else kind.default or "", weight)


def listed(texts: Sequence[str], able: Sequence[str]) -> tuple[str, ...]:
    """`["no-vision,blank-image=black"]` -> `("no-vision", "blank-image=black")`; `all` for all that are able.

    Args:
        texts: what was given, each with commas between.
        able: names that `all` stands for.
    """
    names = [name.strip() for text in texts for name in ([text] if _is_words(text) else text.split(","))]
    every = [one for name in names for one in (able if name == "all" else (name,))]
    return tuple(dict.fromkeys(every)) if "all" in names else tuple(every)


def name_of(row: Mapping[str, Any]) -> str:
    """The reference of a report's setting, `no-vision+mean-vision` for two at once; TCCD's where none is named."""
    return str(row.get("reference") or TEXT)


def rank_of(name: str) -> int:
    """Of what a reference costs, or several at once; an unknown one costs more than all others."""
    return sum(KINDS[one].rank if one in KINDS else 100 for one in name.split("+")) + 10 * name.count("+")


def cost_of(name: str) -> str:
    """What a reference costs beside plain decoding, in words."""
    each = [KINDS[one].cost if one in KINDS else "not known" for one in name.split("+")]
    counts = {cost: each.count(cost) for cost in each}
    return "; and ".join(cost if n == 1 else f"{cost}, {n} times" for cost, n in counts.items())


def recipes(settings: Mapping[str, Any]) -> dict[str, str]:
    """How to decode so: a line of Python for transformers, and of a request to vLLM where its plugin can.

    Args:
        settings: of one setting, by name.

    Returns:
        `{"transformers": ..., "vllm"?: ...}`; `model`, `inputs`, `bank` and the like stand for the user's own.
    """
    rule = {name: settings[name] for name in RULE if settings.get(name) is not None}
    rule = {name: value for name, value in rule.items() if value != 0 or name not in ("beta", "gate_ramp")}
    names = name_of(settings).split("+")
    erased = {name: settings[name] for name in ("layer", "alpha_interp") if name in settings}
    if names == [TEXT]:
        made = f"TCCD(model, bank, {_keywords({**erased, **rule})})"
    else:
        each = [_call(name, settings, erased) for name in names]
        weights = f", weights={settings['weights']}" if "weights" in settings else ""
        made = each[0] if len(each) == 1 else f"[{', '.join(each)}]"
        made = f"Contrast(model, {made}{weights}, {_keywords(rule)})"
    found = {"transformers": f"model.generate(**inputs, custom_generate={made})"}
    if names == [TEXT] and not settings.get("weights"):
        keys = {f"tccd_{name}": value for name, value in {**erased, **rule}.items()}
        found["vllm"] = f'"vllm_xargs": {json.dumps(keys)}'
    return found


def _call(name: str, settings: Mapping[str, Any], erased: Mapping[str, Any]) -> str:
    if name in (TEXT, VISION):
        return f"{name.replace('-', '_')}(bank, {_keywords(erased)})"
    given = {
        "no-vision": "",
        "mean-vision": "bank",
        "blank-image": f"processor, images, prompts, color={_rgb(settings.get('color', ''))}",
        "noised-image": f"inputs, step={settings.get('step')}",
        "early-exit": repr(settings.get("layers")),
        "prompt": "processor, other_words, images",
    }
    made = "other_prompt" if name == "prompt" else name.replace("-", "_")
    return f"{made}({given.get(name, '...')})"


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _rgb(color: str) -> tuple[int, ...]:
    return ImageColor.getrgb(color)[:3] if color else (128, 128, 128)
