"""The replacement probe: the accuracy a model loses when one modality is replaced by its centroids, and what it
gains or loses by contrast with references.

Source: Paruchuri et al., "The Cost of Language", COLM 2026, arXiv 2604.14363.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from probes.asking.arms import Answers, Arm, answer
from probes.asking.blind import BLIND, MAJORITY, majority
from probes.asking.fingerprint import fingerprint
from probes.asking.forward import encode_samples, run_streams
from probes.asking.journal import Journal, open_journal
from probes.asking.scoring import describe as describe_scoring
from probes.asking.scoring import longest, targets
from probes.pairing import choose_pair
from probes.replacement.examples import flips
from probes.replacement.grid import Cell, Design, Grid, Setting, design
from probes.replacement.overlap import data_block, seen_pictures
from probes.report.envelope import envelope
from probes.statistics.bootstrap import paired_bootstrap_ratio
from probes.statistics.clusters import Clusters
from probes.statistics.intervals import holm
from probes.statistics.outcomes import accuracy, bits, by_task, cost, gain, labels
from probes.statistics.protocols import protocols
from probes.warnings import warn
from tccd.centroids.bank import CentroidBank
from tccd.data import Sample
from tccd.data.pictures import picture_digest
from tccd.decoder import find_decoder, identify
from tccd.engine import Reference
from tccd.inputs import check_samples

#: Samples, evenly spaced, that doses are measured on before they are matched.
DOSE_SAMPLES = 128

#: Bytes that a run and its report take up, at least: for an answer, for a question, for a page.
ROOM_AN_ANSWER, ROOM_A_QUESTION, ROOM_A_PAGE = 4, 200, 200_000


def run(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    bank: CentroidBank | Sequence[CentroidBank] | Mapping[str, CentroidBank] = (),
    grid: Grid | None = None,
    *,
    name: str | None = None,
    batch_size: int = 32,
    examples: int = 6,
    fitted_on: str | None = None,
    journal: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure text and vision centroid cost, and contrast, over a grid, with a blind baseline beside them.

    Args:
        model: a vision-language model in eval mode.
        processor: its processor.
        samples: questions with answers.
        bank: fitted for the model; several, or several by name, are all measured. None where the grid asks for
            references only that need none.
        grid: what to measure; by default full collapse at every layer that all banks hold.
        name: what the report calls the model; its id when None.
        batch_size: samples a forward.
        examples: items shown whose answer an erasure flips, at most.
        fitted_on: model id of the banks, to accept a rewritten copy of that model; see `CentroidBank.check`. The
            report names it where a bank passed by it alone.
        journal: folder that keeps what is done, so that a killed run can be resumed. It is still there when the
            run is finished: `probes.asking.journal.discard` it once the report is written.
        resume: go on with what the journal holds.
        progress: called with (samples done, samples in all).

    Returns:
        A result of the schema that `probes.report` writes.

    Raises:
        BusyError: another run holds the journal.
        ConfigError: no cell to measure, or a journal of other settings, or one though resume is off.
        BankMismatchError: a bank was fitted for another model, or lacks a layer.
        DataError: no sample, one that can't be scored or asked, one answer only, an image that can't be read, or
            a kept file that is damaged, edited, of another run, or of other pictures; names the sample or file.
    """
    grid = Grid() if grid is None else grid
    banks = _named(bank)
    scoring = targets(processor, samples)
    check_samples(model, processor, samples, new_tokens=longest(scoring[0], samples, scoring[1]))
    with _kept(model, samples, banks, grid, batch_size, journal, resume) as kept:
        measure = partial(_doses, model, processor, samples, batch_size, kept)
        found = design(model, banks, grid, measure, fitted_on)
        if kept is not None:
            kept.check_room(len(samples) * (len(found.arms) * ROOM_AN_ANSWER + ROOM_A_QUESTION) + ROOM_A_PAGE)
        answers = answer(
            model,
            processor,
            samples,
            found.arms,
            batch_size=batch_size,
            blind=True,
            scoring=scoring,
            journal=kept,
            progress=progress,
        )
    name = name or identify(model).model_id
    result = _result(name, model, grid, banks, found, answers, examples)
    if any(one.check(model, fitted_on) for one in banks.values()):
        result["config"]["fitted_on"] = fitted_on
    result["warnings"] = seen_pictures(result) + warn(result, banks)
    return result


@contextmanager
def _kept(
    model: Any,
    samples: Sequence[Sample],
    banks: Mapping[str, CentroidBank],
    grid: Grid,
    batch_size: int,
    journal: Path | None,
    resume: bool,
) -> Iterator[Journal | None]:
    if journal is None:
        yield None
        return
    settings = fingerprint(model, samples, banks) | {"grid": grid.describe(), "batch_size": batch_size}
    with open_journal(journal, settings, resume=resume) as kept:
        yield kept


def _result(
    name: str,
    model: Any,
    grid: Grid,
    banks: Mapping[str, CentroidBank],
    found: Design,
    answers: Answers,
    examples: int,
) -> dict[str, Any]:
    about = "Centroid cost of" if found.cells else "Contrast in"
    result = envelope(f"{about} {name}", grid.describe())
    result["config"]["scoring"] = describe_scoring(answers.scorer, answers.goals, answers.samples)
    result["data"] = {name: data_block(answers.samples, answers.pictures, banks)}
    rows = _rows(name, found, answers)
    result |= {"models": {name: describe(model, answers)}, **rows, "ratio": ratio(name, found, answers)}
    if rows["tccd_cells"]:
        result["protocols"] = {name: protocols(rows["tccd_cells"])}
    result["examples"] = flips(name, _headline(found), answers, examples)
    result["questions"] = {name: questions(answers)}
    return result


def _named(bank: CentroidBank | Sequence[CentroidBank] | Mapping[str, CentroidBank]) -> dict[str, CentroidBank]:
    if isinstance(bank, CentroidBank):
        return {"bank": bank}
    if isinstance(bank, Mapping):
        return dict(bank)
    return {f"bank {number}" if len(bank) > 1 else "bank": one for number, one in enumerate(bank, 1)}


def _rows(name: str, found: Design, answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """The report's cells, controls and settings of contrast, each list's p-values adjusted over it."""
    tasks, clusters = _tasks(answers), _clusters(answers)
    right, moved = answers.arms_correct, answers.displacement

    def told(arm: int) -> dict[str, Any]:
        return {"labels": labels(answers.texts(answers.arms[arm])), "right": bits(right[arm])}

    def erased(cell: Cell, arm: int) -> dict[str, Any]:
        dose = {"displacement": None if np.isnan(moved[arm]) else float(moved[arm])}
        figures = cost(answers.clean_correct, right[arm], tasks, clusters)
        return {"model": name} | asdict(cell) | figures | dose | told(arm)

    cells = [erased(cell, arm) for arm, cell in enumerate(found.cells)]
    controls = []
    for arm, control in enumerate(found.controls, len(cells)):
        block = {"kind": control.kind, "cell": control.of} | erased(control.cell, arm)
        controls.append(block | ({} if control.against is None else {"against": control.against}))

    def contrasted(setting: Setting, arm: int) -> dict[str, Any]:
        rule = {key: value for key, value in asdict(setting.rule).items() if key != "tokens"}
        block = {"model": name, "reference": setting.reference.name, **setting.reference.parameters, **rule}
        return block | gain(answers.clean_correct, right[arm], tasks, clusters) | told(arm)

    first = len(cells) + len(controls)
    contrasts = [contrasted(setting, arm) for arm, setting in enumerate(found.settings, first)]
    drawn = [
        {"kind": "random-direction", "setting": number} | contrasted(found.settings[number], arm)
        for arm, number in enumerate(found.drawn, first + len(contrasts))
    ]
    rows = {"cells": cells, "controls": controls, "tccd_cells": contrasts} | (
        {"tccd_controls": drawn} if drawn else {}
    )
    for part in rows.values():
        for row, adjusted in zip(part, holm([row["p_value"] for row in part]).tolist(), strict=True):
            row["p_holm"] = adjusted
    return rows


def _headline(found: Design) -> tuple[int, int] | None:
    """Numbers of the text and the vision cell whose costs are compared."""
    if not found.cells:
        return None
    pair = choose_pair([asdict(cell) for cell in found.cells]).pair
    return (pair["text"], pair["vision"]) if len(pair) == 2 else None


def ratio(name: str, found: Design, answers: Answers) -> dict[str, Any]:
    """Asymmetry ratio, text cost over vision cost, of the headline's cells; again with doses matched, where the
    run has that control.

    Pictures, and question strings, are resampled, since questions that share one go together.
    """
    pair = _headline(found)
    if pair is None:
        return {}
    text, vision = (found.cells[i] for i in pair)
    block: dict[str, Any] = {"layer": text.layer, "k": text.k, "alpha_interp": text.alpha_interp}
    if vision.layer != text.layer:
        block["vision_layer"] = vision.layer
    block |= _estimate(answers, *pair)
    for arm, control in enumerate(found.controls, len(found.cells)):
        if control.kind == "dose-matched" and {control.of, control.against} == set(pair):
            matched = [arm if control.of == i else i for i in pair]
            block["dose_matched"] = _estimate(answers, *matched)
    return {name: block}


def _estimate(answers: Answers, text: int, vision: int) -> dict[str, Any]:
    estimate = paired_bootstrap_ratio(
        answers.clean_correct,
        answers.arms_correct[text],
        answers.arms_correct[vision],
        clusters=_clusters(answers),
    )
    interval = None if estimate.low is None else [estimate.low, estimate.high]
    return {"ratio": estimate.value, "ci95": interval, "reason": estimate.reason}


def _doses(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    batch_size: int,
    journal: Journal | None,
    arms: Sequence[Arm],
) -> list[float]:
    """The mean norm by which each arm moves a state, on evenly spaced samples."""
    decoder = find_decoder(model)
    taken = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, DOSE_SAMPLES).round().astype(int))]

    def measure() -> dict[str, Any]:
        sums, pictures = np.zeros((2, len(arms))), []
        for start in range(0, len(taken), batch_size):
            chunk = taken[start : start + batch_size]
            images = [sample.image for sample in chunk]
            pictures += [picture_digest(image) for image in images]
            inputs = encode_samples(model, processor, chunk, images)
            references = [one for arm in arms for one in arm.references if isinstance(one, Reference)]
            streams = run_streams(decoder, inputs, references)
            sums += np.array([streams.moved, streams.replaced])
        with np.errstate(invalid="ignore"):
            return {"pictures": pictures, "doses": (sums[0] / sums[1]).tolist()}

    return (measure() if journal is None else journal.doses(taken, measure))["doses"]


def describe(model: Any, answers: Answers, description: str = "") -> dict[str, Any]:
    """A model's entry in a report: its size, its clean accuracy with a Wilson interval, and what can be had
    without the image.
    """
    identity = identify(model)
    guessed = majority(answers.samples)
    entry: dict[str, Any] = {
        "description": description or f"{identity.model_id} ({identity.model_type})",
        "family": identity.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": accuracy(answers.clean_correct, _clusters(answers)),
        "labels": labels(answers.texts(answers.clean)),
        "truth": labels(answers.texts(answers.answer)),
        "majority": {"n": len(guessed), "accuracy": float(guessed.mean()), "kind": MAJORITY},
    }
    if answers.blind is not None:
        right = answers.blind == answers.answer
        parts = [(task, right[at]) for task, at in by_task(_tasks(answers))]
        entry["blind"] = accuracy(right, _clusters(answers)) | {
            "kind": BLIND,
            "labels": labels(answers.texts(answers.blind)),
            "by_task": [{"task": t, "n": len(one), "accuracy": float(one.mean())} for t, one in parts],
        }
    return entry


def questions(answers: Answers) -> dict[str, Any]:
    """What outcomes are about, by column, one entry a question."""
    columns: dict[str, Any] = {
        "id": [s.id for s in answers.samples],
        "image_id": [s.image_id for s in answers.samples],
        "prompt": [s.prompt for s in answers.samples],
        "picture": answers.pictures,
        "task": _tasks(answers),
        "answer": answers.texts(answers.answer),
        "plain": answers.texts(answers.clean),
        "right": bits(answers.clean_correct),
    }
    if answers.blind is not None:
        columns["blind_right"] = bits(answers.blind == answers.answer)
    return columns


def _clusters(answers: Answers) -> Clusters:
    return Clusters.of(answers.pictures, [s.prompt for s in answers.samples])


def _tasks(answers: Answers) -> list[str]:
    return [s.task or "all" for s in answers.samples]
