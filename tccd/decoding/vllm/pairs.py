"""What a contrasted request's shadow is: a second sequence of tokens, made from the first one's.

The shadow is an ordinary request to vLLM, with a prompt, images and cached blocks of its own. Which prompt it has
depends on the reference:

- `text-centroid`, `vision-centroid`: the same prompt, with rows that the worker moves to centroids;
- `no-vision`: the prompt without its image tokens, closed up;
- `blank-image`: the same prompt, with grey pictures;
- `prompt`: the tokens that the front end made of other words.

Blocks that hold the same states are shared through vLLM's prefix cache. It finds a block by a hash of its tokens,
of all before it and of its images, so a shadow's blocks are found by anybody with the same words and images. Only
where states are moved to centroids does that not suffice: such blocks are hashed with the centroids, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tccd.decoding.vllm import blank
from tccd.decoding.vllm.banks import Banks
from tccd.decoding.vllm.settings import Settings, tail_start
from tccd.errors import TCCDError

#: Where a shadow's parameters carry its `Link`; no request from outside can hold one.
KEY = "shadow_link"
SUFFIX = "#shadow"
#: Where the front end puts the tokens of another prompt, whatever a request had there.
TOKENS = "shadow_prompt"


@dataclass(frozen=True)
class Link:
    """What a worker has to know of a shadow.

    Attributes:
        clean: id of the request that it is the shadow of.
        settings: what that one asked for.
        prompt: number of the shadow's own prompt tokens.
        moved: first position whose state may be moved to a centroid; None where none is.
    """

    clean: str
    settings: Settings
    prompt: int
    moved: int | None


@dataclass(eq=False)
class Pair:
    """A request and its shadow in the scheduler.

    Attributes:
        clean: the request.
        shadow: its shadow.
        settings: what the request asked for.
        shared: leading tokens whose states are the same in both.
        cached: tokens of the request that were in the prefix cache when it came; None before it was looked up.
    """

    clean: Any
    shadow: Any
    settings: Settings
    shared: int
    cached: int | None = None

    @property
    def both(self) -> tuple[Any, Any]:
        """Shadow and request, in the order in which they run."""
        return self.shadow, self.clean


def link(params: Any) -> Link | None:
    """A shadow's link, found in its parameters; None for any other request."""
    found = (getattr(params, "extra_args", None) or {}).get(KEY)
    return found if isinstance(found, Link) else None


def make(request: Any, found: Settings, banks: Banks, vision_ids: Sequence[int], block: int) -> Pair:
    """A request's shadow.

    Args:
        request: vLLM's `Request`, its images in place.
        found: what it asks for.
        banks: the operator's.
        vision_ids: tokens that stand for images.
        block: tokens in a block, as it is hashed.

    Raises:
        TCCDError: the prompt has no image, or no other prompt came with it; admission should have refused it.
    """
    from vllm.v1.request import Request

    ids, features = list(request.prompt_token_ids or ()), list(request.mm_features)
    tail, first = tail_start(ids, tuple(vision_ids)), min((f.mm_position.offset for f in features), default=0)
    if found.reference == "prompt":
        ids, features = _other_prompt(request)
        shared, moved = 0, None
    elif tail is None:
        raise TCCDError(f"{request.request_id} has no image in its prompt; admission should have refused it")
    elif found.reference == "no-vision":
        ids = without_vision(ids, vision_ids, features)
        features, shared, moved = [], first, None
    elif found.reference == "blank-image":
        features = blank.instead(features, (request.sampling_params.extra_args or {})[blank.KEY])
        shared, moved = first, None
    else:
        vision = set(vision_ids)
        moved = tail if found.modality == "text" else next(i for i, t in enumerate(ids) if t in vision)
        shared = moved
    hasher = request._block_hasher
    if hasher is not None and moved is not None:
        hasher = MovedHasher(hasher, moved, mark(found, banks, moved), block)
    made = Request(
        request_id=request.request_id + SUFFIX,
        prompt_token_ids=ids,
        sampling_params=_parameters(request, Link(request.request_id, found, len(ids), moved)),
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        mm_features=features,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=hasher,
    )
    return Pair(request, made, found, shared)


def without_vision(ids: Sequence[int], vision_ids: Sequence[int], features: Sequence[Any]) -> list[int]:
    """A prompt's tokens without those that images stand for, closed up.

    What a template writes around an image (`<|vision_start|>`) stays: it is text to the model.
    """
    gone = {i for f in features for i in range(f.mm_position.offset, f.mm_position.offset + f.mm_position.length)}
    vision = set(vision_ids)
    return [token for i, token in enumerate(ids) if i not in gone and token not in vision]


def _other_prompt(request: Any) -> tuple[list[int], list[Any]]:
    held = (request.sampling_params.extra_args or {}).get(TOKENS)
    if not held:
        raise TCCDError(f"{request.request_id} came without the tokens of its other prompt")
    moved = [
        replace(feature, mm_position=replace(feature.mm_position, offset=at))
        for feature, at in zip(request.mm_features, held["images"], strict=False)  # none, or one for each
    ]
    return list(held["tokens"]), moved


def _parameters(request: Any, link: Link) -> Any:
    """The shadow is never sampled from: its rows go through the model, and it then gets the request's token."""
    from vllm import SamplingParams

    theirs = request.sampling_params
    skips = theirs.skip_reading_prefix_cache and theirs.prompt_logprobs is None
    return SamplingParams(
        temperature=0.0,
        max_tokens=request.max_tokens,
        ignore_eos=True,
        detokenize=False,
        skip_reading_prefix_cache=bool(skips),
        extra_args={KEY: link},
    )


def mark(found: Settings, banks: Banks, moved: int) -> str:
    """What moved states depend on beside tokens and images."""
    assert found.modality is not None
    digest = banks.digest(found.bank, found.layer, found.modality)
    return f"tccd:{found.modality}:{digest}:{found.layer}:{found.config.alpha_interp!r}:{moved}"


class MovedHasher:
    """Block hashes of a shadow: the request's own before the first moved position, and others from there on.

    What only the rule needs (`alpha_cd`, `beta`, gate) is no part of them: no cached state depends on it. The
    chain is vLLM's, kept on the side, so the hashes are the same however many blocks come at a time.

    Args:
        original: vLLM's hasher.
        moved: first position whose state is moved.
        mark: what the moved states depend on.
        block: tokens in a block.
    """

    def __init__(self, original: Callable[..., list[bytes]], moved: int, mark: str, block: int) -> None:
        self._original, self._moved, self._mark, self._block = original, moved, mark.encode(), block
        self._plain: list[bytes] = []

    def __call__(self, request: Any) -> list[bytes]:
        """Hashes of the blocks that became full."""
        start = len(self._plain)
        new = self._original(_Seen(request, self._plain))
        self._plain += new
        return [
            hashlib.sha256(h + self._mark).digest() if (i + 1) * self._block > self._moved else h
            for i, h in enumerate(new, start)
        ]


class _Seen:
    """A request with other block hashes, for vLLM's hasher to read."""

    def __init__(self, request: Any, block_hashes: list[bytes]) -> None:
        self._request, self.block_hashes = request, block_hashes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
