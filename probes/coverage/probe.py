"""The coverage probe as a whole: a model, sets of samples and a bank -> a result for `probes.coverage.report`.

The question is that of "Caption First, VQA Second" (arXiv 2604.13054), whose authors publish neither formula nor
code: how much does a data set cover, and how dense is each sample in knowledge? Here it is asked in the layers of
the model that is to be trained, on codebooks of its own hidden states. So these are our measures, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probes.asking.fingerprint import fingerprint
from probes.asking.journal import Journal, open_journal
from probes.coverage.assigning import Codebooks, Text, assign, spoken
from probes.coverage.fairness import Compared, check_fair
from probes.coverage.measure import FactNumbers, Facts, Tallies, equalise, gather, rows, thin
from probes.coverage.pages import examples
from probes.coverage.schema import SCHEMA
from probes.coverage.store import Store
from probes.coverage.tally import DRAWS
from probes.report.envelope import envelope, installed
from tccd.centroids.bank import CentroidBank
from tccd.data import Sample, Samples
from tccd.decoder import identify
from tccd.errors import ConfigError, DataError
from tccd.inputs import check_samples
from tccd.modality import Modality

#: Text tokens of a sample that count, at most: more than questions and captions have.
TEXT_TOKENS = 512
#: Thin codes of each set and codebook that a report names.
THIN = 6


@dataclass(frozen=True)
class Source:
    """One of the sets.

    Attributes:
        name: what the report calls it.
        samples: of it.
    """

    name: str
    samples: Samples


@dataclass(frozen=True)
class Measured:
    """A result, and what it was made from.

    Attributes:
        result: for `probes.coverage.report.write`.
        stores: codes of each set, by name.
        codebooks: that they are of.
    """

    result: dict[str, Any]
    stores: Mapping[str, Store]
    codebooks: Codebooks


def coverage(
    model: Any,
    processor: Any,
    sources: Sequence[Source],
    bank: CentroidBank,
    *,
    layers: Mapping[Modality, int] | None = None,
    least: int = 1,
    text: Text = "both",
    text_tokens: int = TEXT_TOKENS,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 16,
    fitted_on: str | None = None,
    journal: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measured:
    """Measure what each set covers of a model's codebooks, how dense its samples are, and what sets add to others.

    Args:
        model: a vision-language model.
        processor: its processor.
        sources: the sets. Each picture counts once, whatever copies and samples there are of it.
        bank: with text and vision centroids of the model, fitted on the union of the sets, or on none of them.
        layers: one of the bank's layers for each modality; may be left out where it has only one.
        least: distinct pictures that make a code covered. 1 takes every hit; 2 or 3 leave out oddities.
        text: what of a sample counts as its text: "prompt", "answer", or "both".
        text_tokens: text tokens of a sample that count, at most.
        draws: bootstrap draws of whole pictures; at least 20, or 0 for no intervals.
        seed: of the draws.
        batch_size: samples a forward.
        fitted_on: as for `CentroidBank.check`.
        journal: folder that keeps the codes of each batch, so that a killed run can be resumed.
        resume: go on with what it holds.
        progress: called with a set's name, samples done and samples in all.

    Raises:
        BusyError: another run holds the journal.
        ConfigError: a parameter is out of range, two sets have one name, the bank was fitted on one of the sets,
            or the journal is of other settings.
        BankMismatchError: the bank is of another model, or lacks a layer.
        DataError: no sample, one that can't be asked, or a picture that can't be read; names it.
    """
    _check(sources, least, text_tokens, draws)
    copy = bank.check(model, fitted_on)
    codebooks = Codebooks.of(bank, dict(layers or {}))
    read = {one.name: spoken(one.samples, text) for one in sources}
    stores: dict[str, Store] = {}
    for samples in read.values():
        check_samples(model, processor, samples)
    # Before the forwards: it reads each picture once more, and may spare hours.
    warned = check_fair(bank, {one.name: _compared(one) for one in sources})
    settings = {"layers": [codebooks.text, codebooks.vision], "text_tokens": text_tokens, "batch": batch_size}
    with _kept(model, read, bank, settings, journal, resume) as kept:
        first = 0
        for name, samples in read.items():
            stores[name] = assign(
                model,
                processor,
                samples,
                codebooks,
                text_tokens=text_tokens,
                batch_size=batch_size,
                journal=kept,
                first=first,
                progress=_told(progress, name, len(samples)),
            )
            first += len(samples)
    tallies = tally(stores, codebooks.k, {one.name: _facts(one.samples) for one in sources}, draws, seed)
    config: dict[str, Any] = {
        "text": text,
        "text_tokens": text_tokens,
        "least": least,
        "draws": draws,
        "seed": seed,
    }
    config |= {} if copy is None else {"fitted_on": copy}
    result = envelope(
        f"What {_listed(list(read))} cover{'' if len(read) > 1 else 's'}", config, installed(), SCHEMA
    )
    result |= {"model": asdict(identify(model)), "codebooks": _described(codebooks)}
    result |= {"sets": [_set(one, tallies[one.name]) for one in sources]}
    result |= rows(tallies, least)
    found = [row for codebook in ("vision", "text") for row in thin(tallies, codebook, THIN)]
    result["thin"] = examples(found, {one.name: one.samples for one in sources})
    result["warnings"] = warned + _warnings(codebooks, bank, sources, stores)
    return Measured(result, stores, codebooks)


def tally(
    stores: Mapping[str, Store],
    k: Mapping[str, int],
    facts: Mapping[str, Facts | None] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Tallies]:
    """Tallies of several sets over the same codes.

    Args:
        stores: codes of each set, by name.
        k: codes by codebook: `text`, `vision`, `pairs`.
        facts: of each set, where it has them.
        draws: bootstrap draws.
        seed: of the draws; each set has its own.
    """
    numbers = FactNumbers()
    found = {
        name: gather(store, k, (facts or {}).get(name), numbers, draws, seed + place)
        for place, (name, store) in enumerate(stores.items())
    }
    equalise(found, len(numbers))
    return found


def _check(sources: Sequence[Source], least: int, text_tokens: int, draws: int) -> None:
    for name, value, lowest in (("least", least, 1), ("text_tokens", text_tokens, 1), ("draws", draws, 0)):
        if type(value) is not int or value < lowest:
            raise ConfigError(f"{name} is {value!r}; expected an integer of at least {lowest}")
    if 0 < draws < 20:
        raise ConfigError(f"draws is {draws}; expected at least 20, or 0 for no intervals")
    names = [one.name for one in sources]
    if not names:
        raise ConfigError("no data set; expected at least one")
    if len(set(names)) < len(names):
        raise ConfigError(f"two sets have one name: {', '.join(names)}; expected names that differ")
    for one in sources:
        if not len(one.samples):
            raise DataError(f"{one.name} holds no samples")


def _told(progress: Callable[[str, int, int], None] | None, name: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(name, done, total)


@contextmanager
def _kept(
    model: Any,
    read: Mapping[str, Sequence[Sample]],
    bank: CentroidBank,
    settings: Mapping[str, Any],
    journal: Path | None,
    resume: bool,
) -> Iterator[Journal | None]:
    if journal is None:
        yield None
        return
    every = [sample for samples in read.values() for sample in samples]
    told = fingerprint(model, every, {"bank": bank})
    told |= {**settings, "sets": {name: len(samples) for name, samples in read.items()}}
    with open_journal(journal, told, resume=resume) as kept:
        yield kept


def _compared(one: Source) -> Compared:
    first = {sample.image_id: sample for sample in reversed(one.samples)}
    digests = frozenset(sample.picture_digest for sample in first.values())
    return Compared(one.samples.source, one.samples.split, digests)


def _facts(samples: Sequence[Sample]) -> Facts | None:
    if all(sample.facts is None for sample in samples):
        return None
    return lambda number: samples[number].facts or ()


def _described(codebooks: Codebooks) -> dict[str, Any]:
    layers = {"text": codebooks.text, "vision": codebooks.vision}
    fitted = {key: codebooks.bank.provenance.get(key) for key in ("data", "split", "prompt", "images")}
    told = {name: {"layer": layer, "k": codebooks.k[name]} for name, layer in layers.items()}
    return {**told, "fitted_on": fitted}


def _set(one: Source, found: Tallies) -> dict[str, Any]:
    tokens = round(found.density["tokens"].below)
    return {
        "name": one.name,
        "source": one.samples.source,
        "split": one.samples.split,
        "revision": one.samples.revision,
        "samples": found.samples,
        "pictures": found.pictures,
        "text_tokens": tokens,
    }


def _warnings(
    codebooks: Codebooks, bank: CentroidBank, sources: Sequence[Source], stores: Mapping[str, Store]
) -> list[str]:
    found = []
    prompt = bank.provenance.get("prompt")
    if isinstance(prompt, str):
        found.append(
            f"the text codebook was fitted on one prompt for every picture ({prompt[:60]!r}), so it tells the "
            "texts of the sets apart badly; fit it on their own words (tccd fit --prompt from-data)"
        )
    for modality in ("text", "vision"):
        entry = bank.entries[modality, codebooks.text if modality == "text" else codebooks.vision]
        if entry.empty_clusters:
            found.append(
                f"{entry.empty_clusters} of the {entry.k} {modality} codes were nearest to no row that the "
                "codebook was fitted on, so full coverage can't be had; fit on more images, or with a lower --k"
            )
    digests = {name: set(store.digests.tolist()) for name, store in stores.items()}
    names = [one.name for one in sources]
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            both = len(digests[name] & digests[other])
            if both:
                found.append(
                    f"{name} and {other} share {both:,} pictures; intervals of their differences are wider than "
                    "they need be"
                )
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
