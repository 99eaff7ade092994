"""What has to be known of a model that vLLM loaded: its language model, its decoder layers, and whose they are."""

from __future__ import annotations

from typing import Any

from tccd.decoder import ModelIdentity, embedding_fingerprint
from tccd.decoding.vllm.refusals import identity
from tccd.errors import UnsupportedModelError

_WITHOUT = "Start vLLM without TCCD_BANK to serve this model plainly"


def decoder_of(model: Any) -> tuple[Any, Any]:
    """The language model, which has the head, and its decoder, which has the layers.

    Raises:
        UnsupportedModelError: a part is not where it is looked for.
    """
    name = type(model).__name__
    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    decoder = getattr(language, "model", None)
    missing = [part for part in ("layers", "norm", "embed_tokens") if not hasattr(decoder, part)]
    if missing:
        raise UnsupportedModelError(f"{name}: its decoder has no {', '.join(missing)}. {_WITHOUT}")
    return language, decoder


def identity_of(config: Any, decoder: Any) -> ModelIdentity:
    """Whose weights were loaded.

    Args:
        config: the engine's `VllmConfig`.
        decoder: as `decoder_of` found it.
    """
    known, embedding = identity(config), decoder.embed_tokens
    rows = getattr(embedding, "org_vocab_size", None)
    whole = config.parallel_config.tensor_parallel_size == 1  # a rank has its part of the embeddings only
    fingerprint = embedding_fingerprint(embedding, decoder.norm, rows) if whole else known.embedding
    return ModelIdentity(**{**vars(known), "num_layers": len(decoder.layers), "embedding": fingerprint})
