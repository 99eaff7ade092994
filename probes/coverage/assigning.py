"""Samples -> codes: the forwards of a harvest, each row replaced at once by the number of its nearest centroid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from probes.asking.journal import Journal
from probes.coverage.store import Record, Store
from tccd.centroids.bank import CentroidBank
from tccd.centroids.reading import Reader, Reading, pictures_of
from tccd.centroids.replacement import Centroids
from tccd.data import Sample
from tccd.data.pictures import picture_digest
from tccd.decoder import find_decoder
from tccd.errors import ConfigError, DataError
from tccd.modality import Modality

#: By sample: its codes, the code of its mean row, and that row's squared distance to its centroid; None where a
#: value is not finite.
Lookup = list[list[Any] | None]
#: What of a sample counts as its text.
Text = Literal["prompt", "answer", "both"]


@dataclass(frozen=True)
class Codebooks:
    """A text and a vision entry of a bank.

    Attributes:
        bank: that has them.
        text, vision: decoder layers of the two.
    """

    bank: CentroidBank
    text: int
    vision: int

    @classmethod
    def of(cls, bank: CentroidBank, layers: dict[Modality, int]) -> Codebooks:
        """The entries of a bank at given layers; at its only ones where none is given.

        Args:
            bank: with text and vision centroids.
            layers: by modality.

        Raises:
            ConfigError: the bank has several layers of a modality, and none is named; or none at all.
            BankMismatchError: it has no such layer.
        """
        found: dict[Modality, int] = {}
        for modality in ("text", "vision"):
            held = bank.layers(modality)
            if modality in layers:
                bank.centroids(modality, layers[modality])
                found[modality] = layers[modality]
            elif not held:
                raise ConfigError(
                    f"the bank has no {modality} centroids, and coverage needs those of both modalities; fit one "
                    "with --layers text=12,vision=16 or other layers"
                )
            elif len(held) > 1:
                raise ConfigError(
                    f"the bank has {modality} centroids at layers {', '.join(map(str, held))}; expected one to be "
                    f"named, as in --layers text={bank.layers('text')[0] if bank.layers('text') else 12},"
                    f"vision={bank.layers('vision')[0] if bank.layers('vision') else 16}"
                )
            else:
                found[modality] = held[0]
        return cls(bank, found["text"], found["vision"])

    def centroids(self, modality: Modality) -> Centroids:
        """Of one modality."""
        return self.bank.centroids(modality, self.text if modality == "text" else self.vision)

    @property
    def k(self) -> dict[str, int]:
        """Number of codes by modality, and of pairs of them."""
        text, vision = self.centroids("text").k, self.centroids("vision").k
        return {"text": text, "vision": vision, "pairs": text * vision}


def spoken(samples: Sequence[Sample], text: Text) -> list[Sample]:
    """Samples whose prompt is the text that counts.

    Args:
        samples: of a set.
        text: "prompt", "answer", or "both": the prompt and then the answer, where there is one.

    Raises:
        ConfigError: unknown text.
        DataError: a sample has no answer, where only answers count.
    """
    if text not in get_args(Text):
        raise ConfigError(f"text is {text!r}; expected one of {', '.join(get_args(Text))}")
    found = []
    for sample in samples:
        if text == "answer" and not sample.answer:
            raise DataError(f"sample {sample.id} has no answer, and --text answer counts nothing else; try both")
        words = {
            "prompt": sample.prompt,
            "answer": sample.answer or "",
            "both": " ".join(part for part in (sample.prompt, sample.answer) if part),
        }
        found.append(replace(sample, prompt=words[text]))
    return found


def assign(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    codebooks: Codebooks,
    *,
    text_tokens: int,
    batch_size: int,
    journal: Journal | None = None,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """The codes that each sample hits; hidden states are dropped batch by batch.

    Args:
        model: as for `tccd.centroids.harvest.harvest`; so are the others that have its names.
        processor: its processor.
        samples: of one set.
        codebooks: to look rows up in.
        text_tokens: text tokens after the image that count, at most.
        batch_size: prompts a forward.
        journal: keeps the codes of each batch.
        first: samples of other sets that the journal holds before these.
        progress: called with the samples done.

    Raises:
        DataError: a picture can't be read, a hidden state is not finite, or a kept file is of other pictures.
    """
    how = Reading(prompt=None, text_tokens=text_tokens, batch_size=batch_size)
    wanted: dict[Modality, tuple[int, ...]] = {"text": (codebooks.text,), "vision": (codebooks.vision,)}
    reader = Reader(find_decoder(model), processor, wanted, how)
    store = Store()

    def make(batch: Sequence[Sample], number: int) -> dict[str, Any]:
        pictures = pictures_of(batch)
        read = reader.read(batch, pictures, number)
        text = look_up(read.rows[f"text.{codebooks.text}"], read.lengths["text"], codebooks.centroids("text"))
        vision = look_up(
            read.rows[f"vision.{codebooks.vision}"], read.lengths["vision"], codebooks.centroids("vision")
        )
        for sample, one, other in zip(batch, text, vision, strict=True):
            if one is None or other is None:
                raise DataError(
                    f"sample {sample.id} has a hidden state that is not finite; load the model in another "
                    "precision (--dtype)"
                )
        made = {"pictures": [picture_digest(picture) for picture in pictures], "tokens": read.lengths["text"]}
        return made | {"text": text, "vision": vision}

    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        if journal is None:
            made = make(batch, start)
        else:
            made = journal.chunk(first + start, batch, partial(make, batch, start))
        store.add(records(made), made["pictures"])
        if progress is not None:
            progress(start + len(batch))
    return store


def look_up(rows: Tensor, lengths: Sequence[int], centroids: Centroids) -> Lookup:
    """Rows of several samples -> the codes of each.

    Args:
        rows: shape (rows, hidden), the samples' one after another.
        lengths: rows of each sample.
        centroids: the codebook.

    Returns:
        A sample each: its codes, each once and ascending; the code of its mean row; and that row's squared
        distance to its centroid. None for a sample with a value that is not finite; no code and 0 for one without
        rows.
    """
    rows = rows.float()
    nearest = centroids.search(rows).cpu().numpy()
    ends = np.cumsum(lengths)
    parts = [rows[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    finite = torch.isfinite(rows).all(-1).cpu().numpy()
    none = rows.new_zeros(rows.shape[1])
    means = torch.stack([part.double().mean(0).float() if len(part) else none for part in parts])
    homes = centroids.search(means)
    spread = (means - centroids.to(means.device).vectors[homes]).square().sum(-1).tolist()
    found: Lookup = []
    for end, length, home, gap in zip(ends.tolist(), lengths, homes.tolist(), spread, strict=True):
        here = slice(end - length, end)
        if not finite[here].all():
            found.append(None)
        else:
            found.append([np.unique(nearest[here]).tolist(), home, gap] if length else [[], 0, 0.0])
    return found


def records(made: Mapping[str, Any]) -> list[Record]:
    """Codes of a batch, as a journal keeps them, as records.

    Args:
        made: `text` and `vision`, as `look_up` gives them, and `tokens`, text rows of each sample.
    """
    return [
        Record(
            np.array(text[0], np.int64),
            np.array(vision[0], np.int64),
            tokens,
            (text[1], vision[1]),
            (text[2], vision[2]),
        )
        for text, vision, tokens in zip(made["text"], made["vision"], made["tokens"], strict=True)
    ]
