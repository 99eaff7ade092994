"""What stops the engine before it loads: untested configurations, other releases, banks of another model.

Each of vLLM's features that changes how rows, caches or logits come about (parallelism, speculation, other
attention) might leave the erased stream silently wrong. So what was not tested is refused, by name, all of it in
one message.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from tccd.decoder import ModelIdentity
from tccd.decoding.vllm import weights
from tccd.decoding.vllm.banks import Banks
from tccd.errors import BankMismatchError, ConfigError, ModalityError, TCCDError, UnsupportedModelError
from tccd.modality import vision_token_ids

#: Releases of vLLM that the tests ran on, as (first, first that is too new).
TESTED = ((0, 32), (0, 33))
TESTED_RANGE = ">={},<{}".format(*(".".join(map(str, release)) for release in TESTED))
_WITHOUT = "Start vLLM without TCCD_BANK to go without TCCD"


def check_version(found: str) -> None:
    """Make sure that vLLM is of a tested release; its inside changes with every one.

    Raises:
        ConfigError: it is not; names the range.
    """
    if not is_tested(found):
        raise ConfigError(
            f"TCCD was tested with vLLM {TESTED_RANGE}, found {found}: install one of these. {_WITHOUT}"
        )


def is_tested(found: str) -> bool:
    """Whether a release of vLLM was tested."""
    release = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    return TESTED[0] <= release < TESTED[1]


def check_config(config: Any, fitted: bool = True) -> None:
    """Refuse what was not tested, by name.

    Args:
        config: the engine's `VllmConfig`.
        fitted: whether there is a bank, so that layers are hooked.

    Raises:
        UnsupportedModelError: names everything that was not tested.
    """
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    text = model.hf_text_config
    layer_types = set(getattr(text, "layer_types", None) or ())
    untested = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "data parallelism": parallel.data_parallel_size > 1,
        "expert parallelism": parallel.enable_expert_parallel,
        "context parallelism": max(parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size)
        > 1,
        "microbatches (DBO)": parallel.enable_dbo or parallel.ubatch_size > 1,
        "batch-sharded sampling": bool(parallel.enable_batch_sharded_sampling),
        "speculative decoding": config.speculative_config is not None,
        "LoRA": config.lora_config is not None,
        "KV connectors": config.kv_transfer_config is not None or bool(cache.kv_offloading_size),
        "encoder-cache connectors": config.ec_transfer_config is not None,
        f"a {cache.cache_dtype} KV cache": cache.cache_dtype not in ("auto", "float16", "bfloat16", "float32"),
        "KV-sharing fast prefill": cache.kv_sharing_fast_prefill,
        "weights quantised otherwise than to int8 by compressed-tensors": model.quantization is not None
        and not _int8(model),
        "weight offloading": config.offload_config.uva.cpu_offload_gb > 0
        or config.offload_config.prefetch.offload_group_size > 0,
        "MLA": model.use_mla,
        "hybrid or state-space layers": model.is_hybrid or bool(layer_types - {"full_attention"}),
        "sliding-window attention": bool(model.get_sliding_window()),
        "attention that is not causal over images": model.is_mm_prefix_lm,
        "sleep mode": bool(getattr(model, "enable_sleep_mode", False)),
        "encoder-decoder models": model.is_encoder_decoder,
        "diffusion language models": model.is_diffusion,
        "pooling models": model.runner_type != "generate",
        "prompt embeddings": model.enable_prompt_embeds,
        "a custom scheduler": not _is_default(config.scheduler_config.scheduler_cls, None, "tccd.decoding.vllm."),
        "a custom worker": not _is_default(parallel.worker_cls, "auto", "vllm.v1.worker.", "tccd.decoding.vllm."),
        "a scheduling policy other than fcfs": config.scheduler_config.policy != "fcfs",
        "max_num_seqs below 2": config.scheduler_config.max_num_seqs < 2,
        "events of the KV cache": bool(config.kv_events_config and config.kv_events_config.enable_kv_cache_events),
        "mixtures of experts and a bank (TCCD_BANK=none serves them)": model.is_moe and fitted,
        "vLLM's Rust front end": os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
    }
    found = [name for name, there in untested.items() if there]
    if found:
        raise UnsupportedModelError(f"TCCD was not tested with {', '.join(found)}. {_WITHOUT}")
    if model.is_multimodal_model and not vision_ids(config):
        raise UnsupportedModelError(f"{type(model.hf_config).__name__} names no vision token. {_WITHOUT}")


def vision_ids(config: Any) -> tuple[int, ...]:
    """Tokens that stand for images in a served model's prompts; none for a language model.

    Args:
        config: the engine's `VllmConfig`.
    """
    try:
        return vision_token_ids(config.model_config.hf_config)
    except ModalityError:
        return ()


def identity(config: Any) -> ModelIdentity:
    """What is known of the model before its weights are loaded."""
    model = config.model_config
    local = os.path.isdir(model.model)
    return ModelIdentity(
        model_id=os.path.basename(os.path.normpath(model.model)) if local else model.model,
        revision=None if local else getattr(model.hf_config, "_commit_hash", None),
        model_type=str(model.hf_config.model_type),
        hidden_size=model.get_hidden_size(),
        num_layers=model.get_total_num_hidden_layers(),
        fingerprint=None,
        embedding=weights.embedding(checkpoint) if (checkpoint := weights.folder(model)) else None,
    )


def check_banks(banks: Banks, model: ModelIdentity, loaded: bool = False) -> None:
    """Make sure that every bank belongs to the model.

    Args:
        banks: the operator's banks.
        model: with `embedding` where it could be read; it then decides, and names and revisions don't.
        loaded: no later check will know more, so that names decide where `embedding` is not known.

    Raises:
        BankMismatchError: one does not; says which and why.
    """
    for name in banks.names:
        bank = banks[name]
        if bank.model.model_type != model.model_type:
            raise _other(name, f"kind: bank {bank.model.model_type!r}, model {model.model_type!r}")
        if bank.model.embedding and model.embedding and bank.model.embedding != model.embedding:
            raise _other(
                name,
                f"embeddings: bank {bank.model.model_id!r} with fingerprint {bank.model.embedding[:12]}, model "
                f"{model.model_id!r} with {model.embedding[:12]}",
            )
        # Without a kind, which was compared above: vLLM has no --fitted-on to advise.
        seen = replace(model, model_type="")
        if bank.model.embedding and (model.embedding or not loaded):
            seen = replace(seen, model_id=bank.model.model_id, revision=None)
        try:
            bank.check(seen)
        except TCCDError as error:
            raise type(error)(f"bank {name!r}: {error}") from error


def _other(name: str, differ: str) -> BankMismatchError:
    return BankMismatchError(
        f"bank {name!r}: the bank was fitted for another model ({differ}). Serve the model it was fitted for, or "
        "fit a bank for this one (tccd fit)"
    )


def _int8(model: Any) -> bool:
    """Whether a model's weights are quantised to int8 by compressed-tensors, and in no other way."""
    held = getattr(model.hf_config, "quantization_config", None) or {}
    weights = [group.get("weights") or {} for group in dict(held.get("config_groups") or {}).values()]
    fits = [(one.get("num_bits"), one.get("type")) == (8, "int") for one in weights]
    return model.quantization == "compressed-tensors" and bool(fits) and all(fits)


def _is_default(found: Any, unset: Any, *ours: str) -> bool:
    """Whether a class was left as it is, or is one of those that begin so."""
    name = found if found is None or isinstance(found, str) else f"{found.__module__}.{found.__qualname__}"
    return name == unset or (name is not None and name.startswith(ours))
