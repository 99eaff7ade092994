"""The erased stream inside a model that vLLM loaded: tail rows ride behind the clean ones above the bank's layer.

Above the lowest bank layer each attention layer gets a second one with keys and values of its own. vLLM sees it
as one more layer of the model, gives it a cache of the same shape over the same block table, and so its
bookkeeping (paging, preemption, prefix caching) serves both.

In a step with erased rows the layers' `forward` is replaced for as long as the model runs. The bank's layer
copies the tail rows and erases them. Each layer above takes `[clean | erased]` rows in one call: norms,
projections and MLP don't look at other rows, so their weights are read once. Attention alone is split: clean
rows go to the first cache, erased ones to the second. The states of the clean rows are those that vLLM would
have computed.

A compiled model and its CUDA graphs have no place for more rows: such a step runs the same modules one by one. A
step without a TCCD request runs vLLM's own code, compiled or in a CUDA graph, with nothing of ours on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import ForwardContext, get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.worker.utils import AttentionGroup

from tccd.centroids.replacement import Centroids
from tccd.decoder import ModelIdentity, embedding_fingerprint
from tccd.decoding.vllm import objects
from tccd.decoding.vllm.banks import Banks
from tccd.decoding.vllm.batch import Plan
from tccd.decoding.vllm.refusals import check_banks, identity
from tccd.decoding.vllm.sampling import ContrastingHead
from tccd.errors import TCCDError, UnsupportedModelError

SUFFIX = ".tccd"
_WITHOUT = "Start vLLM without TCCD_BANK to serve this model plainly"


@dataclass
class ErasedRows:
    """The rows that one forward runs a second time, erased, as tensors.

    Attributes:
        plan: which rows.
        rows: the same on the device, shape (E,).
        sites: layer -> [(centroids, erased rows or None for all, `alpha_interp` of each)].
        copies: blocks whose clean keys and values the erased cache takes over.
        hidden, residual: the erased rows between layers, shape (E, hidden) each.
    """

    plan: Plan
    rows: Tensor
    sites: dict[int, list[tuple[Centroids, Tensor | None, Tensor]]]
    copies: Tensor | None
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: Tensor = field(default_factory=lambda: torch.empty(0))
    _positions: tuple[Tensor, Tensor] | None = None

    def positions(self, clean: Tensor) -> Tensor:
        """Positions of the clean rows, then of the erased ones; shape (..., rows)."""
        if self._positions is None or self._positions[0] is not clean:
            self._positions = clean, torch.cat([clean, clean[..., self.rows]], -1)
        return self._positions[1]

    def erase(self, layer: int) -> None:
        """Replace the rows whose bank is of this layer."""
        for centroids, rows, alpha in self.sites.get(layer, ()):
            at = slice(None) if rows is None else rows
            x = self.hidden[at] + self.residual[at]
            self.hidden[at] = centroids.replace(x, alpha)
            self.residual[at] = 0


class ErasedStream:
    """Second attention layers of a loaded model, and what switches them on for one forward.

    Args:
        model: a multimodal model that vLLM loaded.
        vllm_config: the engine's configuration.
        banks: what requests may name.
        device: the model's.

    Raises:
        UnsupportedModelError: the decoder is not of the form that was tested.
        BankMismatchError: a bank was fitted for another model.
    """

    def __init__(self, model: Any, vllm_config: VllmConfig, banks: Banks, device: torch.device) -> None:
        self.model, self.vllm_config, self.banks, self.device = model, vllm_config, banks, device
        self.language, decoder = _decoder(model)
        self.layers, self.norm = list(decoder.layers), decoder.norm
        check_banks(banks, _identity(vllm_config, decoder, len(self.layers)), loaded=True)
        self.first = banks.layers()[0]
        self.head = ContrastingHead(model, self.language)
        self._group: AttentionGroup | None = None
        self._patches: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._erased: ErasedRows | None = None
        self.seconds: dict[int, Attention] = {}
        for index, layer in enumerate(self.layers[self.first :], self.first):
            self._patches.append((layer, self._layer(index, objects.checked("layer", layer))))
            if index > self.first:
                attention = _attention(layer, index)
                self.seconds[index] = second = self._second(attention)
                self._patches.append(
                    (attention, self._attention(attention, second, objects.checked("attention", attention)))
                )

    def _second(self, attention: Attention) -> Attention:
        config = self.vllm_config
        with (
            set_current_vllm_config(config),
            set_default_torch_dtype(config.model_config.dtype),
            torch.device(self.device),
        ):
            second = Attention(
                attention.num_heads,
                attention.head_size,
                attention.impl.scale,
                num_kv_heads=attention.num_kv_heads,
                cache_config=config.cache_config,
                logits_soft_cap=getattr(attention.impl, "logits_soft_cap", None) or None,
                prefix=attention.layer_name + SUFFIX,
                attn_backend=attention.attn_backend,
                head_size_v=attention.head_size_v,
            )
            second.process_weights_after_loading(config.model_config.dtype)
        return second

    # A step

    def prepare(self, plan: Plan, block_table: Tensor) -> ErasedRows:
        """The plan as tensors.

        Args:
            plan: which rows.
            block_table: blocks of every request of the batch, shape (requests, blocks).
        """
        places: dict[tuple[str, int], tuple[list[int], list[float]]] = {}
        for chunk, begin, end in zip(plan.chunks, plan.offsets, plan.offsets[1:], strict=False):
            settings = chunk.tail.settings
            rows, alphas = places.setdefault((settings.bank, settings.layer), ([], []))
            rows += range(begin, end)
            alphas += [settings.config.alpha_interp] * int(end - begin)
        sites: dict[int, list[tuple[Centroids, Tensor | None, Tensor]]] = {}
        for (bank, layer), (rows, alphas) in places.items():
            at = None if len(places) == 1 else self._tensor(rows, torch.int64)
            entry = self._bank(bank, layer), at, self._tensor(alphas, torch.float32)
            sites.setdefault(layer, []).append(entry)
        blocks = [block_table[index, :count] for index, count in plan.copies]
        return ErasedRows(
            plan=plan,
            rows=self._tensor(plan.rows, torch.int64),
            sites=sites,
            copies=torch.cat(blocks).long() if blocks else None,
        )

    @contextmanager
    def running(self, plan: Plan, block_table: Tensor, groups: list[list[AttentionGroup]]) -> Iterator[None]:
        """Run the erased rows with the forward inside; afterwards the next logits are contrasted.

        Args:
            plan: which rows.
            block_table: blocks of every request of the batch, shape (requests, blocks).
            groups: the runner's attention groups.
        """
        context = get_forward_context()
        erased = self.prepare(plan, block_table)
        self._metadata(erased, block_table, groups, context)
        with self._switched_on(erased, context):
            yield
        last = self._tensor(plan.last, torch.int64)
        # The fused norm writes into what it is given: these are copies.
        normed, _ = self.norm(erased.hidden[last], erased.residual[last])
        self.head.expect(plan.chunks, normed)
        for chunk in plan.chunks:
            chunk.tail.started = True

    @contextmanager
    def all_rows_erased(self) -> Iterator[None]:
        """Run every row of the forwards inside twice: the most memory that a step can take, for profiling."""
        forward = self.model.forward

        def twice(*args: Any, **kwargs: Any) -> Any:
            positions = kwargs["positions"]
            rows = np.arange(positions.shape[-1])
            plan = Plan((), rows, np.array([0], dtype=np.int32), np.array([], dtype=np.int32), ())
            with self._switched_on(
                ErasedRows(plan, self._tensor(rows, torch.int64), {}, None), get_forward_context()
            ):
                return forward(*args, **kwargs)

        with objects.forwards([(self.model, twice)]):
            yield

    @contextmanager
    def _switched_on(self, erased: ErasedRows, context: ForwardContext) -> Iterator[None]:
        objects.run_uncompiled(context)
        self._erased = erased
        try:
            with objects.forwards(self._patches):
                yield
        finally:
            self._erased = None

    def _metadata(
        self, erased: ErasedRows, block_table: Tensor, groups: list[list[AttentionGroup]], context: ForwardContext
    ) -> None:
        plan = erased.plan
        if not self.seconds:
            return
        names = [second.layer_name for second in self.seconds.values()]
        group = self._own_group(groups, names)
        clean = names[0].removesuffix(SUFFIX)
        if not isinstance(context.attn_metadata, dict) or not isinstance(context.slot_mapping, dict):
            raise TCCDError("TCCD in vLLM: this step has no attention metadata by layer (microbatches?)")
        slots = context.slot_mapping[clean][erased.rows]
        offsets = torch.from_numpy(plan.offsets)
        lengths = torch.from_numpy(plan.lengths)
        counts = plan.offsets[1:] - plan.offsets[:-1]
        indices = self._tensor([chunk.index for chunk in plan.chunks], torch.int64)
        common = CommonAttentionMetadata(
            query_start_loc=offsets.to(self.device),
            query_start_loc_cpu=offsets,
            seq_lens=lengths.to(self.device),
            num_reqs=len(plan.chunks),
            num_actual_tokens=len(plan.rows),
            max_query_len=int(counts.max()),
            max_seq_len=int(plan.lengths.max()),
            block_table_tensor=block_table[indices],
            slot_mapping=slots,
            is_prefilling=torch.tensor([chunk.computed < chunk.tail.prompt for chunk in plan.chunks]),
            seq_lens_cpu_upper_bound=lengths,
        )
        metadata = group.build_metadata(common)
        for name in names:
            context.attn_metadata[name] = metadata
            context.slot_mapping[name] = slots

    def _own_group(self, groups: list[list[AttentionGroup]], names: list[str]) -> AttentionGroup:
        """An attention group of the second layers alone: a builder may keep what it built, so it isn't shared."""
        if self._group is None:
            found = [group for held in groups for group in held if set(names) & set(group.layer_names)]
            if len(found) != 1 or not set(names) <= set(found[0].layer_names):
                raise UnsupportedModelError(
                    f"its second attention layers fall into {len(found)} groups. {_WITHOUT}"
                )
            (theirs,) = found
            group = AttentionGroup(theirs.backend, names, theirs.kv_cache_spec, theirs.kv_cache_group_id)
            spec = theirs.get_metadata_builder(0).kv_cache_spec
            group.create_metadata_builders(self.vllm_config, self.device, spec.block_size)
            self._group = group
        return self._group

    # What the modules of a step do

    def _layer(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def first(positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **more: Any) -> Any:
            erased = self._erased
            assert erased is not None
            hidden, residual = forward(positions, hidden_states, residual, **more)
            erased.hidden, erased.residual = hidden[erased.rows], residual[erased.rows]
            erased.erase(index)
            return hidden, residual

        def above(positions: Tensor, hidden_states: Tensor, residual: Tensor, **more: Any) -> Any:
            erased = self._erased
            assert erased is not None
            clean = len(hidden_states)
            hidden, residual = forward(
                erased.positions(positions),
                torch.cat([hidden_states, erased.hidden]),
                torch.cat([residual, erased.residual]),
                **more,
            )
            erased.hidden, erased.residual = hidden[clean:], residual[clean:]
            erased.erase(index)
            return hidden[:clean], residual[:clean]

        return first if index == self.first else above

    def _attention(
        self, attention: Attention, second: Attention, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        def both(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            erased = self._erased
            assert erased is not None
            clean = len(query) - len(erased.plan.rows)
            output = forward(query[:clean], key[:clean], value[:clean])
            if erased.copies is not None:
                second.kv_cache[erased.copies] = attention.kv_cache[erased.copies]
            return torch.cat([output, second(query[clean:], key[clean:], value[clean:])])

        return both

    # Small things

    def block_size(self, groups: list[list[AttentionGroup]]) -> int:
        """Positions in a block of the block table that attention reads."""
        if not self.seconds:
            return 1
        group = self._own_group(groups, [second.layer_name for second in self.seconds.values()])
        return group.get_metadata_builder(0).kv_cache_spec.block_size

    def release(self) -> None:
        """Let go of the cache, which vLLM frees by walking the model's own modules."""
        for second in self.seconds.values():
            second.kv_cache = torch.tensor([])

    def _bank(self, name: str, layer: int) -> Centroids:
        return self.banks[name].centroids("text", layer).to(self.device)

    def _tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(self.device, non_blocking=True)


def _identity(vllm_config: VllmConfig, decoder: Any, layers: int) -> ModelIdentity:
    known = identity(vllm_config)
    embedding = decoder.embed_tokens
    rows = getattr(embedding, "org_vocab_size", None)
    return ModelIdentity(
        **{**vars(known), "num_layers": layers, "embedding": embedding_fingerprint(embedding, decoder.norm, rows)}
    )


def _decoder(model: Any) -> tuple[Any, Any]:
    name = type(model).__name__
    if not hasattr(model, "get_language_model"):
        raise UnsupportedModelError(f"{name} is no multimodal model with a language model. {_WITHOUT}")
    language = model.get_language_model()
    decoder = getattr(language, "model", None)
    missing = [part for part in ("layers", "norm", "embed_tokens") if not hasattr(decoder, part)]
    if missing:
        raise UnsupportedModelError(f"{name}: its decoder has no {', '.join(missing)}. {_WITHOUT}")
    return language, decoder


def _attention(layer: nn.Module, index: int) -> Attention:
    found = [module for module in layer.modules() if hasattr(module, "get_kv_cache_spec")]
    kinds = [type(module).__name__ for module in found]
    if len(found) != 1 or type(found[0]) is not Attention:
        raise UnsupportedModelError(
            f"decoder layer {index} attends by {kinds}; TCCD was tested with one full attention. {_WITHOUT}"
        )
    (attention,) = found
    special = {
        "a sliding window": attention.sliding_window is not None,
        "attention sinks": attention.has_sink,
        "shared keys and values": attention.kv_sharing_target_layer_name is not None,
        "a bidirectional prefix": attention.use_mm_prefix,
        "ALiBi": getattr(attention.impl, "alibi_slopes", None) is not None,
        "attention that is not causal": attention.attn_type != AttentionType.DECODER,
    }
    for what, there in special.items():
        if there:
            raise UnsupportedModelError(f"decoder layer {index} has {what}, not tested with TCCD. {_WITHOUT}")
    return attention
