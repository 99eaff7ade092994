"""What one run of the replacement probe measures: cells, their controls, and settings of contrast, as arms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from probes.asking.arms import Arm
from probes.references import TEXT, parse
from probes.replacement.controls import matched_alpha, random_centroid, random_direction
from probes.replacement.sources import Shelf, Variant
from tccd.centroids.bank import CentroidBank
from tccd.decoding.config import Rule, TCCDConfig
from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import centroid_erasure
from tccd.engine import Erasure, Reference
from tccd.errors import ConfigError
from tccd.modality import MODALITIES, SEGMENTS, Modality


@dataclass(frozen=True)
class Grid:
    """What to measure; every combination is.

    Attributes:
        layers: modality -> decoder layers to erase at; None takes all that `held_layers` finds, of both.
        alphas: values of `alpha_interp`: what erasure keeps of a state's offset from its centroid.
        segments: modality -> segments to erase (`tccd.modality.SEGMENTS`); the first one where not given.
        references: what to contrast with, beside the cells, as `probes.references.parse` takes it; those made of
            centroids at each bank, layer and value of `alphas`.
        alpha_cd: strengths of the contrast, of either sign; none for no contrast.
        beta: plausibilities of the contrast.
        gate: signal that gates the contrast, beside the contrast without a gate; None for none.
        gate_thresholds: thresholds of the gate.
        controls: whether each cell of the lowest alpha and the first segment gets its controls, and each contrast
            with centroids the same with a random direction.
        seed: of the controls' draws.

    Raises:
        ConfigError: a value is out of range or unknown, stands twice, or there is none.
    """

    layers: Mapping[str, Sequence[int]] | None = None
    alphas: Sequence[float] = (0.0,)
    segments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    references: Sequence[str] = (TEXT,)
    alpha_cd: Sequence[float] = ()
    beta: Sequence[float] = (0.0,)
    gate: str | None = None
    gate_thresholds: Sequence[float] = (0.5,)
    controls: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("alphas", "references", "alpha_cd", "beta", "gate_thresholds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name != "alpha_cd"):
                raise ConfigError(f"{name} = {list(values)}; expected at least one value, each once")
        for alpha in self.alphas:
            TCCDConfig(alpha_interp=alpha)  # the one place that knows the range
        for reference in self.references:
            parse(reference)
        self.rules()
        for modality, names in self.segments.items():
            known = SEGMENTS.get(modality)  # type: ignore[call-overload]
            unknown = [name for name in names if name not in (known or ())]
            if known is None or unknown or not names or len(set(names)) < len(names):
                raise ConfigError(
                    f"segments of {modality}: {list(names)}; expected some, each once, of "
                    + " and of ".join(f"{m}: {', '.join(s)}" for m, s in SEGMENTS.items())
                )

    def rules(self) -> list[Rule]:
        """Every rule of the contrast, the weakest first."""
        gates: list[dict[str, Any]] = [{}]
        if self.gate is not None:
            gates += [{"gate": self.gate, "gate_threshold": threshold} for threshold in self.gate_thresholds]
        strengths = sorted(self.alpha_cd, key=lambda alpha: (abs(alpha), -alpha))
        axes = itertools.product(strengths, self.beta, gates)
        return [Rule(alpha_cd=alpha, beta=beta, **gate) for alpha, beta, gate in axes]

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(replace(self, layers=dict(self.layers) if self.layers else None))


@dataclass(frozen=True)
class Cell:
    """One erasure of one modality; what a report says of it beside its outcomes."""

    modality: Modality
    layer: int
    bank: str
    k: int
    alpha_interp: float
    segment: str


@dataclass(frozen=True)
class Control:
    """A control of one cell.

    Attributes:
        kind: see `probes.report.sections.controls.Control`.
        of: number of the cell among the plan's.
        cell: what was done instead.
        against: number of the other modality's cell whose dose was matched.
    """

    kind: str
    of: int
    cell: Cell
    against: int | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of contrast: which reference, and by which rule."""

    reference: Variant
    rule: Rule


@dataclass(frozen=True)
class Design:
    """What is measured, and the arms that do it: one a cell, then one a control, one a setting, one a drawn.

    Attributes:
        cells, controls, settings: what is measured.
        drawn: numbers of the settings that are measured with a random direction too.
        arms: all of them.
    """

    cells: list[Cell]
    controls: list[Control]
    settings: list[Setting]
    drawn: list[int]
    arms: list[Arm]


#: Arms -> the mean norm by which each moves a state, in the order of the arms.
Measure = Callable[[Sequence[Arm]], Sequence[float]]


def design(
    model: Any,
    banks: Mapping[str, CentroidBank],
    grid: Grid,
    measure: Measure,
    fitted_on: str | None = None,
) -> Design:
    """Lay out a run.

    Args:
        model: the model, which the banks are checked against.
        banks: by the name that reports give them.
        grid: what to measure.
        measure: asked for the dose of cells whose doses are matched, before the run.
        fitted_on: as `CentroidBank.check` takes it.

    Raises:
        ConfigError: nothing to erase.
        BankMismatchError: a bank was fitted for another model, or lacks a layer.
    """
    for bank in banks.values():
        bank.check(model, fitted_on)
    layers = _layers(banks, grid)
    idle = [name for name in ("segments", "controls") if getattr(grid, name)]
    idle += ["layers"] if any(layers.values()) else []
    if idle and not banks:
        raise ConfigError(f"{', '.join(idle)}: said of what a bank erases, and no bank was given; give one")
    made: dict[tuple[str, Modality, int, float, str], Erasure] = {}

    def erasing(bank: str, modality: Modality, layer: int, alpha: float, segment: str | None = None) -> Erasure:
        key = bank, modality, layer, alpha, segment or SEGMENTS[modality][0]
        if key not in made:
            made[key] = centroid_erasure(banks[bank], layer, alpha, modality, key[-1])
        return made[key]

    cells, arms = [], []
    for modality in MODALITIES:
        segments = grid.segments.get(modality, SEGMENTS[modality][:1])
        filled = [(name, bank) for name, bank in banks.items() if bank.tensors]
        for (name, bank), segment, layer in itertools.product(filled, segments, layers.get(modality, ())):
            k = bank.centroids(modality, layer).k
            for alpha in grid.alphas:
                cells.append(Cell(modality, layer, name, k, alpha, segment))
                arms.append(Arm(erasing(name, modality, layer, alpha, segment)))
    controls: list[Control] = []
    if grid.controls:
        for control, arm in _controls(banks, grid, cells, arms, measure):
            controls.append(control)
            arms.append(arm)
    rules = grid.rules()
    named = grid.references if rules else ()
    shelf = Shelf(banks, layers, grid.alphas, erasing)
    references = [variant for text in named for variant in shelf.variants(text)]
    for source in (source for reference in references for source in reference.sources):
        if isinstance(source, Reference):
            Contrast(model, source)  # refuses what the model does not have
    # Weak contrast first: protocols break ties by order.
    settings = [Setting(reference, rule) for rule in rules for reference in references]
    arms += [Arm(s.reference.sources, s.rule, s.reference.weights) for s in settings]
    drawn = _drawn(banks, settings, grid.seed) if grid.controls else {}
    arms += drawn.values()
    if not arms and not banks:
        raise ConfigError(
            "nothing to measure: no bank to erase by, and no contrast; give a bank, or alpha_cd and a reference "
            "that needs none, such as no-vision"
        )
    if not arms:
        means = not any(bank.tensors for bank in banks.values())
        hint = "; a bank of a vision mean alone serves reference mean-vision, with alpha_cd" if means else ""
        raise ConfigError(f"nothing to erase: layers = {layers}, banks {list(banks)}{hint}")
    return Design(cells, controls, settings, list(drawn), arms)


def _layers(banks: Mapping[str, CentroidBank], grid: Grid) -> dict[str, tuple[int, ...]]:
    if grid.layers is not None:
        return {modality: tuple(layers) for modality, layers in grid.layers.items()}
    return {modality: held_layers(banks.values(), modality) for modality in MODALITIES}


def held_layers(banks: Collection[CentroidBank], modality: Modality) -> tuple[int, ...]:
    """The layers that every bank holds and that have a layer above them, where an erasure takes effect."""
    held = [set(bank.layers(modality)) - {bank.model.num_layers - 1} for bank in banks if bank.tensors]
    return tuple(sorted(set.intersection(*held))) if held else ()


def _drawn(banks: Mapping[str, CentroidBank], settings: Sequence[Setting], seed: int) -> dict[int, Arm]:
    """By number of a setting of centroids, the same contrast with a random direction of equal norm."""
    made: dict[int, Erasure] = {}
    found = {}
    for number, setting in enumerate(settings):
        (erasure, *more), of = setting.reference.sources, setting.reference.parameters
        if more or not isinstance(erasure, Erasure):
            continue
        if id(erasure) not in made:
            centroids = banks[of["bank"]].centroids(erasure.modality, erasure.layer)
            made[id(erasure)] = replace(erasure, replace=random_direction(centroids, of["alpha_interp"], seed))
        found[number] = Arm(made[id(erasure)], setting.rule)
    return found


def _controls(
    banks: Mapping[str, CentroidBank], grid: Grid, cells: Sequence[Cell], arms: Sequence[Arm], measure: Measure
) -> list[tuple[Control, Arm]]:
    found: list[tuple[Control, Arm]] = []
    lowest = min(grid.alphas)
    chosen = [
        i
        for i, cell in enumerate(cells)
        if cell.alpha_interp == lowest
        and cell.segment == grid.segments.get(cell.modality, SEGMENTS[cell.modality])[0]
    ]
    for i in chosen:
        cell, erasure = cells[i], arms[i].references[0]
        assert isinstance(erasure, Erasure)
        centroids = banks[cell.bank].centroids(cell.modality, cell.layer)
        draws = {"random-direction": random_direction, "random-centroid": random_centroid}
        for kind, make in draws.items():
            drawn = replace(erasure, replace=make(centroids, lowest, grid.seed))
            found.append((Control(kind, i, cell), Arm(drawn)))
        if cell.modality == "text":
            found.append((Control("spare-answer", i, cell), Arm(replace(erasure, spare=1))))
    return found + _matched(banks, cells, arms, chosen, measure)


def _matched(
    banks: Mapping[str, CentroidBank],
    cells: Sequence[Cell],
    arms: Sequence[Arm],
    chosen: Sequence[int],
    measure: Measure,
) -> list[tuple[Control, Arm]]:
    """The stronger cell of each pair of text and vision again, its dose lowered to the weaker one's."""
    pairs = opposite([cells[i] for i in chosen])
    if not pairs:
        return []
    doses = measure([arms[chosen[i]] for pair in pairs for i in pair])
    found = []
    for number, pair in enumerate(pairs):
        both = sorted(zip(doses[2 * number : 2 * number + 2], pair, strict=True))
        (weaker, other), (stronger, own) = both
        # A dose of nothing, or of no position (not a number), can't be matched: the report's cells show it.
        if not 0 < weaker <= stronger:
            continue
        cell = cells[chosen[own]]
        alpha = matched_alpha(cell.alpha_interp, stronger, weaker)
        erasure = centroid_erasure(banks[cell.bank], cell.layer, alpha, cell.modality, cell.segment)
        control = Control("dose-matched", chosen[own], replace(cell, alpha_interp=alpha), chosen[other])
        found.append((control, Arm(erasure)))
    return found


def opposite(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """Pairs of numbers of (text, vision) cells to compare: the same bank and layer.

    Where a bank has no layer in common for both, its middle text cell meets its middle vision cell: the published
    protocol erases text and vision at different layers.
    """
    pairs = []
    for bank in dict.fromkeys(cell.bank for cell in cells):
        by = {
            m: {c.layer: i for i, c in enumerate(cells) if (c.bank, c.modality) == (bank, m)} for m in MODALITIES
        }
        text, vision = by["text"], by["vision"]
        common = sorted(set(text) & set(vision))
        if common:
            pairs += [(text[layer], vision[layer]) for layer in common]
        elif text and vision:
            middle = [found[sorted(found)[len(found) // 2]] for found in (text, vision)]
            pairs.append((middle[0], middle[1]))
    return pairs
