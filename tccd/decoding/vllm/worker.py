"""The worker that pairs run in: vLLM's own, which attaches to its model runner after the weights are there.

Each step the worker hears which sequences come and go; here it keeps a `Link` for each shadow. Once the runner has
laid out the batch, `lay_out` says which rows are moved to centroids (`erasure`), and which rows are the last ones
of a pair (`sampling`). After sampling, a shadow gets its request's token.

V1 runs on CPUs and some GPUs, V2 is the default on CUDA. They differ in where a batch is laid out and sampled.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.platforms import current_platform

from tccd.decoding.vllm import banks, erasure, objects, promise
from tccd.decoding.vllm.loaded import decoder_of, identity_of
from tccd.decoding.vllm.pairs import Link, link
from tccd.decoding.vllm.refusals import check_banks, vision_ids
from tccd.decoding.vllm.sampling import ContrastingHead, Pairs
from tccd.errors import TCCDError, UnsupportedModelError

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker as VLLMWorker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as VLLMWorker


class Worker(VLLMWorker):
    """The platform's worker of vLLM, with pairs."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load, then attach before anything is compiled or measured."""
        promise.check(self.vllm_config)
        result = super().load_model(*args, **kwargs)
        v2 = ".gpu_model_runner" not in "".join(k.__module__ for k in type(self.model_runner).__mro__)
        self.tccd = (AttachedV2 if v2 else Attached)(self.model_runner)
        return result

    def execute_model(self, scheduler_output: Any) -> Any:
        """Hear which sequences come and go, then run the step."""
        self.tccd.hear(scheduler_output)
        return super().execute_model(scheduler_output)

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a bank belongs to the weights that it was fitted on."""
        raise UnsupportedModelError("TCCD was not tested with weights that change while the engine runs")


class Attached:
    """What is attached to Model Runner V1.

    Args:
        runner: after its `load_model`.

    Attributes:
        shadows: the link of each shadow that vLLM has not finished, by the shadow's id, with where in its prompt
            states are moved (boolean, shape (tokens,); None from `Link.moved` on).
        head: contrasts logits.
        buffers: which rows are moved.

    Raises:
        UnsupportedModelError: the decoder is not of the form that was tested.
        BankMismatchError: a bank was fitted for another model.
    """

    version = "V1"

    def __init__(self, runner: Any) -> None:
        global _running
        if _running is not None and _running() is not None:
            raise TCCDError("this process already runs a model with TCCD; one process can run one")
        self.runner, self.config = runner, runner.vllm_config
        self.shadows: dict[str, tuple[Link, np.ndarray | None]] = {}
        self.vision_ids = np.array(vision_ids(self.config))
        language, decoder = decoder_of(runner.model)
        loaded = banks.loaded()
        check_banks(loaded, identity_of(self.config, decoder), loaded=True)
        self.buffers = erasure.Buffers.of(runner.max_num_tokens, runner.device)
        self.numbers = {entry: number for number, entry in enumerate(loaded.entries, 1)}
        for (name, modality, layer), number in self.numbers.items():
            centroids = loaded[name].centroids(modality, layer).to(runner.device)
            self.buffers.sets.setdefault(layer, []).append((number, centroids))
        if self.numbers:
            erasure.register()
        for layer in sorted(self.buffers.sets):
            erasure.hook(decoder.layers[layer], layer)
        erasure.set_buffers(self.buffers)
        self.head = ContrastingHead(runner.model, language)
        self._held: dict[int, Any] = {}  # seeds that sampling does not use
        self.attach()
        _running = weakref.ref(self)

    def attach(self) -> None:
        """Stand around the runner's own functions."""
        objects.around("V1 forward", self.runner, self._forward)
        objects.around("V1 sample", self.runner, self._sample)
        if self.runner.device.type == "cpu":
            objects.around("V1 bookkeeping", self.runner, self._bookkeeping)

    @property
    def backend(self) -> str:
        """Name of vLLM's attention backend."""
        layers = self.config.compilation_config.static_forward_context.values()
        return next((str(b.get_name()) for layer in layers if (b := getattr(layer, "attn_backend", None))), "none")

    def hear(self, scheduled: Any) -> None:
        """Take note of shadows that come or go."""
        if self.shadows:
            for name in scheduled.finished_req_ids:
                self.shadows.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            found = link(new.sampling_params)
            if found is not None:
                vision = found.settings.modality == "vision"
                where = np.isin(new.prompt_token_ids, self.vision_ids) if vision else None
                self.shadows[new.req_id] = found, where

    def lay_out(self, at: dict[str, int], starts: Any, computed: Any, last: Any) -> None:
        """Settle what this step moves and contrasts.

        Args:
            at: place of each sequence in the batch.
            starts: first row of each sequence and the end of the last, at least (sequences + 1,).
            computed: tokens of each sequence in the cache before this step.
            last: whether each sequence's last row is in this step.
        """
        places, pairs = [], Pairs()
        for name, (found, where) in self.shadows.items():
            place = at.get(name)
            if place is None:
                continue
            start, end, before = int(starts[place]), int(starts[place + 1]), int(computed[place])
            modality = found.settings.modality
            if found.moved is not None and modality is not None:
                rows = moved_rows(found.moved, where, before, end - start)
                if len(rows):
                    held = found.settings
                    number = self.numbers[held.bank, modality, held.layer]
                    places.append((torch.from_numpy(start + rows), number, held.config.alpha_interp))
            first_only = found.settings.config.tokens == "first"
            if last[place] and found.clean in at and (not first_only or before + end - start == found.prompt):
                pairs.add(at[found.clean], place, found.settings.config)
        self.buffers.fill(places)
        self.head.expect(pairs)

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self.shadows:
            batch = self.runner.input_batch
            partial = self.runner.discard_request_mask.np
            self.lay_out(
                batch.req_id_to_index, self.runner.query_start_loc.np, batch.num_computed_tokens_cpu, ~partial
            )
        elif self.buffers.any:
            self.buffers.fill(())
        return original(*args, **kwargs)

    def _sample(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self.runner.device.type == "cpu":
            self._held = self._hold_generators()
        output = original(*args, **kwargs)
        self.head.share(output.sampled_token_ids)
        return output

    def _hold_generators(self) -> dict[int, Any]:
        """Seeds of sequences whose prompt goes on: vLLM would wind them back, which no CPU generator can."""
        generators = self.runner.input_batch.generators
        partial = self.runner.discard_request_mask.np
        return {place: generators.pop(place) for place in list(generators) if partial[place]}

    def _bookkeeping(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        self.runner.input_batch.generators.update(self._held)
        self._held = {}
        return found


class AttachedV2(Attached):
    """What is attached to Model Runner V2."""

    version = "V2"

    def attach(self) -> None:
        """Stand around the runner's own functions."""
        objects.around("V2 layout", self.runner, self._prepare_attn)
        objects.around("V2 sample", self.runner, self._sample_v2)

    def _prepare_attn(self, original: Any, batch: Any) -> Any:
        found = original(batch)
        if self.shadows:
            known = self.runner.req_states.prefill_len.np[batch.idx_mapping_np[: len(batch.req_ids)]]
            counts = np.diff(batch.query_start_loc_np[: len(batch.req_ids) + 1])
            computed = batch.num_computed_tokens_np
            at = {name: place for place, name in enumerate(batch.req_ids)}
            last = computed[: len(counts)] + counts >= known
            self.lay_out(at, batch.query_start_loc_np, computed, last)
        elif self.buffers.any:
            self.buffers.fill(())
        return found

    def _sample_v2(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        output, *more = original(*args, **kwargs)
        self.head.share(output.sampled_token_ids)
        return (output, *more)


def moved_rows(first: int, where: np.ndarray | None, computed: int, count: int) -> np.ndarray:
    """Which of a step's rows of one sequence are moved, from 0.

    Args:
        first: first position whose state may be moved.
        where: positions of the prompt whose states are moved; None for all from `first` on.
        computed: tokens in the cache before this step.
        count: rows in this step.
    """
    if where is None:
        return np.arange(max(0, first - computed), count)
    return where[computed : computed + count].nonzero()[0]


#: What this process runs.
_running: weakref.ref[Attached] | None = None


def running() -> list[Attached]:
    """What is attached to the model that this process runs; nothing where it runs none with TCCD."""
    found = None if _running is None else _running()
    return [] if found is None else [found]
