"""The N samples of a set that cover most: chosen greedily, in the way of COINCIDE, or at random to compare with.

Source of the second: Lee, Li and Hwang, "Concept-skill Transferability-based Data Selection", arXiv 2406.10995.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.coverage.assigning import Codebooks
from probes.coverage.store import Record, Store, pairs
from tccd.atomic import write_atomic
from tccd.data import Sample
from tccd.errors import ConfigError

WAYS = ("greedy", "coincide", "random")
#: Draws that "random" is the mean of.
DRAWS = 10
#: COINCIDE's temperature.
TEMPERATURE = 0.1
MANIFEST = "subset.jsonl"
PICTURES = "subset-pictures"


def choose(how: str, store: Store, codebooks: Codebooks, count: int, seed: int = 0) -> list[int]:
    """Numbers of the chosen samples, ascending.

    Args:
        how: "greedy", "coincide" or "random".
        store: codes of the set.
        codebooks: that they are of.
        count: samples to choose.
        seed: of chance, where there is some.

    Raises:
        ConfigError: unknown way, or more samples than there are.
    """
    if not 1 <= count <= len(store):
        raise ConfigError(f"a subset of {count} samples; the set has {len(store)}")
    if how == "greedy":
        return greedy(list(store), codebooks.k, count)
    if how == "coincide":
        return coincide(list(store), codebooks, count, seed)
    if how == "random":
        return np.sort(np.random.default_rng(seed).choice(len(store), count, replace=False)).tolist()
    raise ConfigError(f"unknown way {how!r} to choose a subset; expected one of {', '.join(WAYS)}")


def greedy(records: Sequence[Record], k: Mapping[str, int], count: int) -> list[int]:
    """Take, again and again, the sample that hits most codes and pairs that were not hit so far.

    Where several do, and once all are hit, the one whose codes were hit least: each code counts 1 over one more
    than the samples that hit it so far. Greedy choice covers at least 1 - 1/e of what the best choice covers
    (Nemhauser, Wolsey and Fisher, Mathematical Programming 14:265, 1978).

    Args:
        records: of the samples.
        k: codes by codebook: `text`, `vision`, `pairs`.
        count: samples to choose.
    """
    total = k["text"] + k["vision"] + k["pairs"]
    hits = np.zeros(total, dtype=np.int64)

    def codes(record: Record) -> NDArray[np.int64]:
        both = pairs(record.text, record.vision, k["vision"]) + k["text"] + k["vision"]
        return np.concatenate([record.text, record.vision + k["text"], both])

    def gain(number: int) -> tuple[int, float]:
        seen = hits[codes(records[number])]
        return -int((seen == 0).sum()), -float((1 / (1 + seen)).sum())

    # A gain never grows, so one that is still the largest when it is computed anew is the largest of all.
    heap = [(*gain(number), number) for number in range(len(records))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        number = heap[0][2]
        now = (*gain(number), number)
        if now > heap[0]:
            heapq.heapreplace(heap, now)
            continue
        heapq.heappop(heap)
        chosen.append(number)
        hits[codes(records[number])] += 1
    return sorted(chosen)


def coincide(records: Sequence[Record], codebooks: Codebooks, count: int, seed: int = 0) -> list[int]:
    """Draw more from clusters that are near to others and less from dense ones, as COINCIDE does.

    A cluster is the pair of centroids that a sample's mean text row and mean vision row are nearest to. Its share
    is proportional to exp(transferability / (temperature x density)): transferability is the mean cosine of its
    centroids to those of all clusters, density the mean Gaussian kernel of two of its samples. Here the kernel is
    taken at the mean squared distance, in units of the set's, and samples of a cluster are drawn at random, where
    the paper minimises a maximum mean discrepancy.

    Args:
        records: of the samples.
        codebooks: that they are of.
        count: samples to choose.
        seed: of the draws.
    """
    clusters: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        clusters[record.home].append(number)
    homes = sorted(clusters)
    vectors = _directions(homes, codebooks)
    transferability = vectors @ vectors.mean(0)
    spread = np.array([np.mean([records[i].spread for i in clusters[home]], axis=0) for home in homes])
    unit = np.maximum(np.mean([record.spread for record in records], axis=0), 1e-12)
    # Two samples of a cluster lie, squared, twice as far from each other as from its centre.
    density = np.exp(-(2 * spread / unit).mean(1))
    weight = transferability / (TEMPERATURE * np.maximum(density, 1e-6))
    share = np.exp(weight - weight.max())
    quota = _quotas(share / share.sum(), np.array([len(clusters[home]) for home in homes]), count)
    chance = np.random.default_rng(seed)
    chosen = [
        chance.choice(clusters[home], size, replace=False) for home, size in zip(homes, quota, strict=True) if size
    ]
    return np.sort(np.concatenate(chosen)).tolist()


def _directions(homes: Sequence[tuple[int, int]], codebooks: Codebooks) -> NDArray[np.float64]:
    """By cluster its two centroids, each less the mean of its codebook, side by side and of length 1."""
    found = []
    for place, modality in enumerate(("text", "vision")):
        vectors = codebooks.centroids(modality).vectors.double().numpy()  # type: ignore[arg-type]
        vectors = vectors - vectors.mean(0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        found.append(vectors[[home[place] for home in homes]] / math.sqrt(2))
    return np.concatenate(found, axis=1)


def _quotas(share: NDArray[np.float64], sizes: NDArray[np.int64], count: int) -> list[int]:
    """Whole numbers near `share` x `count`, none above its size; the largest remainders get what is left over."""
    quota = np.zeros(len(sizes), dtype=np.int64)
    while (left := count - int(quota.sum())) > 0:
        free = quota < sizes
        part = np.where(free, np.maximum(share, 1e-12), 0)
        wanted = left * part / part.sum()
        step = np.minimum(np.floor(wanted).astype(np.int64), sizes - quota)
        if not step.any():
            step[np.argsort(-np.where(free, wanted, -1), kind="stable")[:left]] = 1
            step = np.minimum(step, sizes - quota)
        quota += step
    return quota.tolist()


def covers(store: Store, k: Mapping[str, int], chosen: Sequence[int]) -> dict[str, float | int]:
    """What some samples of a set cover: shares of text codes, vision codes and pairs, and how many pictures they
    are.

    Args:
        store: codes of the set.
        k: as for `greedy`.
        chosen: numbers of samples.
    """
    wanted, digests = set(chosen), store.digests
    hit = {name: np.zeros(k[name], dtype=bool) for name in ("text", "vision", "pairs")}
    for number, record in enumerate(store):
        if number in wanted:
            hit["text"][record.text] = hit["vision"][record.vision] = True
            hit["pairs"][pairs(record.text, record.vision, k["vision"])] = True
    found: dict[str, float | int] = {name: float(one.mean()) for name, one in hit.items()}
    return found | {"samples": len(wanted), "pictures": len(np.unique(digests[list(chosen)]))}


def compare(name: str, store: Store, codebooks: Codebooks, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a report: what a subset covers, by each way to choose it; "random" is a mean over `DRAWS`.

    Args:
        name: of the set.
        store: its codes.
        codebooks: that they are of.
        count: samples of the subset.
        seed: of chance.
    """
    rows = []
    for how in WAYS:
        draws = DRAWS if how == "random" else 1
        found = [
            covers(store, codebooks.k, choose(how, store, codebooks, count, seed + draw)) for draw in range(draws)
        ]
        row = {key: sum(one[key] for one in found) / draws for key in ("text", "vision", "pairs")}
        row["pictures"] = round(sum(one["pictures"] for one in found) / draws)
        rows.append({"set": name, "how": how, "samples": count, **row})
    return rows


def write(samples: Sequence[Sample], chosen: Sequence[int], folder: Path) -> Path:
    """Write a manifest of the chosen samples, with their pictures beside it, for `--data`; the manifest comes
    last.

    Args:
        samples: of the set, as they were read.
        chosen: numbers of samples.
        folder: which is there.

    Raises:
        DataError: a picture can't be read.
        WriteError: the folder can't be written.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    lines = []
    for number in chosen:
        sample = samples[number]
        image = f"{PICTURES}/{sample.picture_digest}.png"
        if not (folder / image).exists():
            write_atomic(folder / image, _png(sample))
        row: dict[str, Any] = {"id": sample.id, "image": image, "prompt": sample.prompt}
        for key in ("answer", "choices", "task", "facts"):
            if getattr(sample, key) is not None:
                row[key] = getattr(sample, key)
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomic(folder / MANIFEST, ("\n".join(lines) + "\n").encode())
    return folder / MANIFEST


def _png(sample: Sample) -> bytes:
    import io

    buffer = io.BytesIO()
    sample.image.save(buffer, format="PNG")
    return buffer.getvalue()
