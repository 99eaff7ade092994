"""Another picture in the image's place, its keys and values computed once and kept.

A blank picture's keys and values depend on what stands before it and on its size, and not on the question. So they
are computed once for each of these, by one forward of the model, and a twin's own columns are the tail's alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tccd.decoder import Decoder
from tccd.engine.embeddings import beside
from tccd.engine.reference import EMBEDDINGS
from tccd.engine.stand_ins import Given
from tccd.engine.streams import NEVER, Layout, Twin
from tccd.engine.twins import OtherImage
from tccd.errors import ConfigError
from tccd.modality import ModalityMap, modality_map, vision_token_ids

#: Bytes of keys and values that are kept for a model unless told otherwise.
KEPT_BYTES = 2**29

#: Keys and values by decoder layer, each of shape (1, heads, columns, head width).
Block = dict[int, tuple[Tensor, Tensor]]


class Prefixes:
    """Keys and values of pictures in their prompts, those used last, up to so many bytes.

    One store may serve several threads. It belongs to the weights as they are: they are computed anew where a
    parameter was changed in place or an adapter was switched. What is written through a parameter's `.data` goes
    unseen: `clear` then.

    Args:
        max_bytes: kept at most; what is larger by itself is not kept.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Block] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(map(_bytes, self._kept.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()

    def get(self, key: Hashable, make: Callable[[], Block]) -> Block:
        """What is kept under a key, made first where nothing is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        block = make()
        if _bytes(block) <= self.max_bytes:
            with self._lock:
                self._kept[key] = block
                while self.bytes > self.max_bytes:
                    self._kept.popitem(last=False)
        return block


def _bytes(block: Block) -> int:
    return sum(tensor.nbytes for pair in block.values() for tensor in pair)


_stores: WeakKeyDictionary[Any, Prefixes] = WeakKeyDictionary()


@dataclass(frozen=True)
class KeptImage(Twin):
    """Another picture in each image's place, from kept keys and values.

    The outcome is that of `OtherImage`, which takes its place where a prompt ends with its image, and where rows
    are padded and the model is called without positions.

    Attributes:
        encode: numbers of rows -> what the model takes for them with the other pictures: the processor's output.
        pictures: by row, what tells its pictures from others: what they show, and their sizes.
        prefixes: where keys and values are kept; None takes the model's own store.
        given: set by `prepare`: keys and values, and the columns that they stand at.

    Raises:
        ConfigError: the prompts are not those of the batch; raised by `prepare`.
    """

    encode: Callable[[Sequence[int]], Mapping[str, Any]]
    pictures: Sequence[Hashable]
    prefixes: Prefixes | None = None
    layer: int = field(default=EMBEDDINGS, init=False)
    given: Given | None = None

    def prepare(self, decoder: Decoder, given: Mapping[str, Any]) -> KeptImage | OtherImage:
        """Look up what each row needs, and compute what is missing."""
        ids, mask, positions = given["input_ids"], given.get("attention_mask"), given.get("position_ids")
        told = mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape)
        where = modality_map(ids, vision_token_ids(decoder.model.config), mask if told else None)
        has_tail = where.tail[:, -1] | ~where.has_vision
        if not told or not bool(has_tail.all()) or (positions is None and not bool(where.real.all())):
            everything = OtherImage(dict(self.encode(range(len(self.pictures)))))
            return everything.prepare(decoder, given)
        times, left = divmod(len(ids), len(self.pictures))
        if left:
            raise ConfigError(
                f"the other pictures were given for {len(self.pictures)} prompts, but {len(ids)} are "
                "decoded; give the pictures and prompts of this batch"
            )
        store = _stores.setdefault(decoder.model, Prefixes()) if self.prefixes is None else self.prefixes
        state = _state(decoder.model, ids.device.type)
        blocks: list[Block | None] = []
        for row in range(len(ids)):
            if not bool(where.has_vision[row]):
                blocks.append(None)
                continue
            until = int(where.vision[row].nonzero()[-1]) + 1
            columns = where.real[row, :until].nonzero()[:, 0]
            words = tuple(ids[row, columns].tolist())
            at = None if positions is None else positions[..., row : row + 1, columns]
            first = int(where.vision[row, columns].int().argmax())
            make = partial(self._run, decoder, ids, row // times, words, at, first)
            place = None if at is None else at.cpu().numpy().tobytes()
            blocks.append(store.get((state, self.pictures[row // times], words, place), make))
        return replace(self, given=_assembled(blocks, where))

    def _run(
        self, decoder: Decoder, ids: Tensor, row: int, words: tuple[int, ...], positions: Tensor | None, first: int
    ) -> Block:
        return run_prefix(decoder, beside(ids, self.encode([row]), decoder.model), words, positions, first)

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first column on that is behind every image of its row."""
        assert self.given is not None
        seen, left = modalities.vision.cumsum(-1) > 0, modalities.vision.flip(-1).cumsum(-1).flip(-1) > 0
        start = torch.where(modalities.has_vision, modalities.tail.int().argmax(-1), NEVER)
        return Layout(start, hidden=seen & left, stand_ins=self.given)


def run_prefix(
    decoder: Decoder, inputs: Mapping[str, Any], words: tuple[int, ...], positions: Tensor | None, first: int
) -> Block:
    """Keys and values of one prompt's columns from its first picture to the end of its last, by one forward.

    Args:
        decoder: the model's parts.
        inputs: what the model takes for the whole prompt, where it runs.
        words: token ids up to the end of the last picture; the prompt has to begin so.
        positions: their positions as the model takes them, shape (..., 1, len(words)); None leaves them to it.
        first: column of the first picture.

    Raises:
        ConfigError: the prompt begins otherwise.
    """
    whole = inputs["input_ids"]
    n = len(words)
    if tuple(whole[0, :n].tolist()) != words:
        raise ConfigError(
            "the prompt given with the other pictures is not the one that is decoded: its tokens up to the last "
            "picture differ; give the same prompts, and pictures of the same size"
        )
    cut = {
        name: value[:, :n] if isinstance(value, Tensor) and value.shape == whole.shape else value
        for name, value in inputs.items()
    }
    if positions is not None:
        cut["position_ids"] = positions
    cache = DynamicCache()

    def run() -> None:
        with torch.no_grad():
            decoder.model(**cut, past_key_values=cache, use_cache=True, logits_to_keep=1)

    Context().run(run)  # an empty context: no session is on, and nobody records outputs
    return {
        index: (layer.keys[:, :, first:].clone(), layer.values[:, :, first:].clone())
        for index, layer in enumerate(cache.layers)
    }


def _assembled(blocks: Sequence[Block | None], where: ModalityMap) -> Given:
    """Blocks of several widths side by side, each row's columns beside them."""
    some = next(block for block in blocks if block is not None)
    widths = [0 if block is None else block[0][0].shape[2] for block in blocks]
    columns = torch.full((len(blocks), max(widths)), NEVER, device=where.real.device)
    first = where.vision.int().argmax(-1)
    for row, width in enumerate(widths):
        columns[row, :width] = first[row] + torch.arange(width, device=columns.device)
    layers = {}
    for layer, pair in some.items():
        keys, values = (x.new_zeros(len(blocks), x.shape[1], max(widths), x.shape[3]) for x in pair)
        for row, block in enumerate(blocks):
            if block is not None:
                keys[row, :, : widths[row]], values[row, :, : widths[row]] = block[layer][0][0], block[layer][1][0]
        layers[layer] = keys, values
    return Given(columns, layers)


def _state(model: Any, device: str) -> Hashable:
    """Changes where a parameter is changed in place, an adapter is switched, or autocast on the device."""
    weights = tuple((id(p), 0 if p.is_inference() else p._version) for p in model.parameters())
    adapters = tuple(
        (repr(module.active_adapters), bool(module.disable_adapters), repr(module.merged_adapters))
        for module in model.modules()
        if hasattr(module, "merged_adapters") and hasattr(module, "active_adapters")
    )
    return weights, adapters, torch.is_autocast_enabled(device)
