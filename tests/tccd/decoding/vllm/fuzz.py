"""The scheduler against a worker that knows what every slot of the cache holds: `python -m ...fuzz BANK MODEL`.

No model runs. The worker keeps, for each slot of the cache, a hash of all that a state there would depend on:
every token up to it, images, and what states were moved with. Before a row runs, all slots that it would read are
compared with what its own sequence says they hold. An image that runs must have been given. A token is a hash of
the row that it is sampled from, and of the shadow's row. So an answer is right only if each of its rows was.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tccd.decoding.vllm import pairs
from tccd.decoding.vllm.admission import Room
from tccd.decoding.vllm.settings import settings
from tests.tccd.decoding.vllm.mutants import MUTANTS

BLOCK, VOCABULARY, FIRST_WORD, VISION = 4, 40, 10, 9
LAYERS, CONTEXT = (1, 2), 48
#: What an image's features hold for the encoder alone.
PIXELS = "pixel_values"


class Wrong(Exception):
    """The scheduler did what it must not do."""


@dataclass
class Asked:
    """One request of a run."""

    name: str
    prompt: list[int]
    images: list[tuple[int, int, str]]  # offset, length, which
    extra: dict[str, Any]
    answer: int
    step: int
    abort: int | None


def asked(rng: random.Random, index: int, room: Room) -> Asked:
    """A request that admission lets pass; few kinds of words and images, so that prefixes are shared."""
    while True:
        seed = random.Random(rng.randrange(4))
        images = rng.choice([1, 1, 2])
        prompt: list[int] = []
        places = []
        for _ in range(images):
            prompt += [seed.randrange(FIRST_WORD, FIRST_WORD + 2) for _ in range(seed.randrange(1, 7))]
            length = seed.randrange(1, 6)
            places.append((len(prompt), length, f"{rng.choice('ab')}{length}"))  # vLLM: one length an image
            prompt += [VISION] * length
        prompt += [seed.randrange(FIRST_WORD, FIRST_WORD + 2) for _ in range(rng.randrange(1, 20))]
        kind = rng.choice(["plain", "text", "text", "vision", "none", "prompt", "prompt"])
        extra: dict[str, Any] = {}
        if kind == "text":
            extra = {"tccd_layer": rng.choice(LAYERS), "tccd_alpha_interp": rng.choice([0.0, 0.4])}
        elif kind == "vision":
            extra = {"tccd_reference": "vision-centroid"}
        elif kind == "none":
            extra = {"tccd_reference": "no-vision"}
        elif kind == "prompt":
            extra = {"tccd_reference": "prompt", "tccd_prompt": '{"tokens": [1]}'}
            other = [seed.randrange(FIRST_WORD, FIRST_WORD + 2) for _ in range(rng.randrange(2, 40))]
            extra[pairs.TOKENS] = {"tokens": other, "images": []}
        if kind != "plain" and rng.random() < 0.2:
            extra["tccd_tokens"] = "first"
        answer = rng.randrange(1, 14) if rng.random() < 0.8 else max(1, room.context - len(prompt))
        other_length = len(prompt)
        if kind == "none":
            other_length = sum(token != VISION for token in prompt)
        elif kind == "prompt":
            other_length = len(extra[pairs.TOKENS]["tokens"])
        if kind == "none" and rng.random() < 0.3:  # the request meets the end of the context, its shadow does not
            answer = room.context - other_length
        fits = kind == "none" or len(prompt) + answer <= room.context
        if fits and (kind == "plain" or room.lacks(len(prompt), other_length, answer) is None):
            step = rng.randrange(30)
            abort = step + rng.randrange(1, 30) if rng.random() < 0.15 else None
            return Asked(f"r{index}", prompt, places, extra, answer, step, abort)


@dataclass
class Known:
    """What the worker keeps of a sequence."""

    tokens: list[int]
    prompt: int
    images: list[tuple[int, int, str]]
    extra: dict[str, Any]
    link: Any
    blocks: list[int] = field(default_factory=list)
    features: list[Any] = field(default_factory=list)
    _states: list[int] = field(default_factory=list)

    def states(self) -> list[int]:
        """A hash of all that each position's state depends on."""
        for at in range(len(self._states), len(self.tokens)):
            image = next(((ord(w[0]), at - o) for o, length, w in self.images if o <= at < o + length), ())
            moved: tuple[Any, ...] = ()
            if self.link is not None and self.link.moved is not None:
                held = self.link.settings
                here = at >= self.link.moved if held.modality == "text" else self.tokens[at] == VISION
                moved = (len(held.modality), held.layer, held.config.alpha_interp) if here else ()
            before = self._states[-1] if self._states else 0
            self._states.append(hash((before, self.tokens[at], image, moved)))
        return self._states


def token(clean: int, shadow: int | None) -> int:
    """What is sampled from a row; with a shadow's, another one."""
    return FIRST_WORD + hash((clean, -1 if shadow is None else shadow)) % (VOCABULARY - FIRST_WORD)


class Worker:
    """Slots of a cache, and the sequences whose states are in them."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], int] = {}
        self.known: dict[str, Known] = {}

    def run(self, scheduled: Any) -> dict[str, list[int]]:
        """Run a step; tokens of each sequence in it."""
        for name in scheduled.finished_req_ids:
            self.known.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            images = [(f.mm_position.offset, f.mm_position.length, f.identifier) for f in new.mm_features]
            extra = new.sampling_params.extra_args or {}
            found = pairs.link(new.sampling_params)
            self.known[new.req_id] = Known(
                list(new.prompt_token_ids), len(new.prompt_token_ids), images, extra, found, list(new.block_ids[0])
            )
            self.known[new.req_id].features = list(new.mm_features)
        for name, which in scheduled.scheduled_encoder_inputs.items():
            if any(PIXELS not in (self.known[name].features[i].data or {}) for i in which):
                raise Wrong(f"{name} runs an image whose pixels it was never given")
        cached = scheduled.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        for i, name in enumerate(cached.req_ids):
            computed[name] = cached.num_computed_tokens[i]
            new_blocks = cached.new_block_ids[i]
            if name in cached.resumed_req_ids:
                self.known[name].blocks = list(new_blocks[0])
            elif new_blocks is not None:
                self.known[name].blocks += new_blocks[0]
        counts = scheduled.num_scheduled_tokens
        for name, count in counts.items():
            held = self.known[name]
            for at in range(computed[name], computed[name] + count):
                self.slots[held.blocks[at // BLOCK], at % BLOCK] = held.states()[at]
        for name, count in counts.items():
            self._check(name, computed[name] + count)
        return self._sample(counts, computed)

    def _check(self, name: str, end: int) -> None:
        held = self.known[name]
        for at in range(end):
            if self.slots.get((held.blocks[at // BLOCK], at % BLOCK)) != held.states()[at]:
                raise Wrong(f"{name} reads a state of another at {at} of {end}")

    def _sample(self, counts: dict[str, int], computed: dict[str, int]) -> dict[str, list[int]]:
        ends = {name: computed[name] + count for name, count in counts.items()}
        last = {name for name, end in ends.items() if end == len(self.known[name].tokens)}
        tokens: dict[str, list[int]] = {name: [] for name in counts}
        for name in last:
            held = self.known[name]
            if held.link is not None:
                continue
            shadow = self.known.get(name + pairs.SUFFIX)
            beside = name + pairs.SUFFIX in last
            state = None
            if beside:
                assert shadow is not None
                if shadow.link.settings.config.tokens == "all" or ends[name + pairs.SUFFIX] == shadow.prompt:
                    state = shadow.states()[ends[name + pairs.SUFFIX] - 1]
            tokens[name] = [token(held.states()[-1], state)]
            if beside:
                tokens[name + pairs.SUFFIX] = list(tokens[name])
        for name in last:
            if not tokens[name]:  # a shadow alone: what it gets is nobody's
                tokens[name] = [0]
            self.known[name].tokens += tokens[name]
        return tokens


def expected(one: Asked, loaded: Any) -> list[int]:
    """The answer, with no scheduler."""
    found = settings(one.extra, loaded)
    clean = Known(list(one.prompt), len(one.prompt), one.images, one.extra, None)
    shadow = None
    if found is not None:
        ids, images = list(one.prompt), one.images
        if found.reference == "prompt":
            ids, images = list(one.extra[pairs.TOKENS]["tokens"]), []
        elif found.reference == "no-vision":
            ids, images = [t for t in ids if t != VISION], []
        moved = None
        if found.modality is not None:
            last = max(i for i, t in enumerate(ids) if t == VISION) + 1
            moved = last if found.modality == "text" else ids.index(VISION)
        shadow = Known(ids, len(ids), images, {}, pairs.Link(one.name, found, len(ids), moved))
    said: list[int] = []
    for i in range(min(one.answer, CONTEXT - len(one.prompt))):
        contrasts = shadow is not None and (found.config.tokens == "all" or i == 0)
        said.append(token(clean.states()[-1], shadow.states()[-1] if contrasts else None))
        clean.tokens.append(said[-1])
        if shadow is not None:
            shadow.tokens.append(said[-1])
    return said


class Run:
    """One workload on one scheduler.

    Args:
        config: the engine's.
        seed: of the workload.
        ahead: plan a step while the one before it runs.
    """

    def __init__(self, config: Any, seed: int, ahead: bool) -> None:
        self.rng = random.Random(seed)
        self.ahead = ahead
        self.blocks = self.rng.choice([17, 20, 24, 40])
        self.seqs = self.rng.choice([2, 3, 5, 8])
        self.budget = self.rng.choice([3, 5, 6, 9, 16, 40])
        self.caching = self.rng.random() < 0.85
        self.scheduler = self._scheduler(config)
        self.room = Room(config.model_config.max_model_len, self.blocks, BLOCK)
        self.requests = [asked(self.rng, i, self.room) for i in range(self.rng.randrange(3, 12))]
        self.said: dict[str, list[int]] = {one.name: [] for one in self.requests}
        self.done: dict[str, str] = {}

    def _scheduler(self, config: Any) -> Any:
        import torch
        from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from tccd.decoding.vllm.scheduler import AsyncPairScheduler, PairScheduler

        config.scheduler_config.max_num_seqs = self.seqs
        config.scheduler_config.max_num_batched_tokens = self.budget
        config.scheduler_config.long_prefill_token_threshold = self.rng.choice([0, 2, 4])
        config.cache_config.num_gpu_blocks, config.cache_config.block_size = self.blocks, BLOCK
        config.cache_config.enable_prefix_caching = self.caching
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
        cache = KVCacheConfig(self.blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        kind = AsyncPairScheduler if self.ahead else PairScheduler
        made = kind(config, cache, StructuredOutputManager(config), BLOCK)
        if self.seqs > 2:  # images are forgotten, and run again
            made.encoder_cache_manager = EncoderCacheManager(cache_size=12)
        return made

    def _add(self, one: Asked) -> None:
        from vllm import SamplingParams
        from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        init_none_hash(sha256)
        params = SamplingParams(temperature=0, max_tokens=one.answer, ignore_eos=True, extra_args=one.extra)
        pixels = MultiModalKwargsItem({PIXELS: SimpleNamespace(field=SimpleNamespace(keep_on_cpu=False))})
        features = [
            MultiModalFeatureSpec(pixels, "image", which, PlaceholderRange(offset, length), which)
            for offset, length, which in one.images
        ]
        hasher = get_request_block_hasher(BLOCK, sha256) if self.caching else None
        self.scheduler.add_request(
            Request(one.name, list(one.prompt), params, None, mm_features=features, block_hasher=hasher)
        )

    def go(self) -> None:
        """Run to the end.

        Raises:
            Wrong: a slot, an answer, a leftover, or no end.
        """
        worker, queue = Worker(), deque[tuple[Any, dict[str, list[int]]]]()
        for step in range(3000):
            for one in self.requests:
                if one.step == step:
                    self._add(one)
                if one.abort == step and one.name not in self.done:
                    from vllm.v1.request import RequestStatus

                    self.scheduler.finish_requests([one.name], RequestStatus.FINISHED_ABORTED)
                    self.done[one.name] = "aborted"
            if self.rng.random() < 0.01:
                self.scheduler.reset_prefix_cache(reset_running_requests=not self.ahead)
            scheduled = self.scheduler.schedule()
            queue.append((scheduled, worker.run(scheduled)))
            while len(queue) > self.ahead:
                self._take(*queue.popleft())
            if len(self.done) == len(self.requests) and step > 60:
                break
        while queue:
            self._take(*queue.popleft())
        self._judge()

    def _take(self, scheduled: Any, tokens: dict[str, list[int]]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(tokens)
        output = ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, [list(tokens[n]) for n in names])
        for held in self.scheduler.update_from_output(scheduled, output).values():
            for one in held.outputs:
                if one.request_id not in self.said:
                    raise Wrong(f"an answer to {one.request_id}, which nobody asked for")
                if one.request_id in self.done:
                    raise Wrong(f"an answer to {one.request_id} after its end")
                self.said[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.done[one.request_id] = str(one.finish_reason)

    def _judge(self) -> None:
        from tccd.decoding.vllm import banks

        for one in self.requests:
            how, said = self.done.get(one.name, "never"), self.said[one.name]
            wanted = expected(one, banks.loaded())
            if how == "aborted":
                wanted = wanted[: len(said)]
            elif how != "length":
                raise Wrong(f"{one.name} ended by {how}: {one}")
            if said != wanted:
                raise Wrong(f"{one.name} said {said} for {wanted}")
        self.scheduler.schedule()
        left = len(self.scheduler.pairs), len(self.scheduler.requests), len(self.scheduler.failed)
        free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if left != (0, 0, 0) or free != self.blocks - 1:
            raise Wrong(f"left behind: {left}, {self.blocks - 1 - free} blocks")


def check(config: Any, seeds: range, ahead: bool) -> str | None:
    """What the first workload that goes wrong says; None where none does."""
    for seed in seeds:
        try:
            Run(config, seed, ahead).go()
        except Exception as error:
            return f"seed {seed}, {'ahead' if ahead else 'in turn'}: {type(error).__name__}: {error}"
    return None


def main() -> None:
    """Run seeds, with a guard taken away where one is named; prints `FOUND` and what was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--mutants", nargs="*")
    options = parser.parse_args()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.v1.request import RequestStatus

    load_general_plugins()
    arguments = EngineArgs(options.model, dtype="float32", max_model_len=CONTEXT, enforce_eager=True)
    config = arguments.create_engine_config()
    from tccd.decoding.vllm import refusals, scheduler

    scheduler.check = lambda config: None
    scheduler.promise.check = lambda config: None
    scheduler.vision_ids = lambda config: (VISION,)
    assert refusals
    if options.mutants is None:
        for ahead in (False, True):
            said = check(config, range(options.seeds), ahead)
            print("FOUND", "ahead" if ahead else "in turn", "->", said, flush=True)
        return
    module = SimpleNamespace(pairs=pairs, scheduler=scheduler, RequestStatus=RequestStatus)
    for name in options.mutants or MUTANTS:
        kept = [(owner, dict(vars(owner))) for owner in (scheduler.PairScheduler, pairs.MovedHasher)]
        kept_mark = pairs.mark
        MUTANTS[name](module)
        said = check(config, range(options.seeds), False) or check(config, range(options.seeds), True)
        print("FOUND", name, "->", said, flush=True)
        pairs.mark = kept_mark
        for owner, before in kept:
            for key, value in before.items():
                if vars(owner).get(key) is not value:
                    setattr(owner, key, value)


if __name__ == "__main__":
    main()
