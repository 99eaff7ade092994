"""A Hugging Face model -> its decoder layers, final norm and head, found by structure and not by family."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin

from tccd.errors import ConfigError, UnsupportedModelError
from tccd.versions import warn_of_transformers


@dataclass(frozen=True)
class Decoder:
    """The language side of a vision-language model.

    Attributes:
        model: the whole model, whose forward returns logits.
        layers: its decoder layers, in order; layer `L` is `layers[L]`.
        norm: the norm applied to the last layer's output.
        head: the linear map from normed states to logits.
        hidden_size: width of the residual stream.
        linear_logits: the logits are the head's output times a constant at most, so that a combination of
            logits is the head of the combined states; False where they are soft-capped.
    """

    model: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    hidden_size: int
    linear_logits: bool

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    def check_layer(self, layer: int, last_allowed: bool = True) -> int:
        """Return `layer` if the model has it.

        Args:
            layer: index of a decoder layer, from 0.
            last_allowed: False where layers above `layer` are needed.

        Raises:
            ConfigError: the model has no such layer, or no layer above it.
        """
        end = self.num_layers - (0 if last_allowed else 1)
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < end:
            why = "" if last_allowed else "; above the last layer there is nothing to run"
            raise ConfigError(
                f"layer {layer!r} is out of range; this model has {self.num_layers} decoder layers, "
                f"so expected 0 to {end - 1}{why}"
            )
        return layer


def find_decoder(model: Any) -> Decoder:
    """Find the parts of any transformers vision-language model.

    Args:
        model: a transformers model with `get_decoder()` and a language-model head.

    Raises:
        UnsupportedModelError: a part can't be found; says which.
    """
    warn_of_transformers()
    name = type(model).__name__
    if not (hasattr(model, "get_decoder") and hasattr(model, "config")):
        raise UnsupportedModelError(
            f"{name} is no transformers model with get_decoder(); load one with AutoModelForImageTextToText"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; tccd needs a decoder-only language model")
    outer = model.get_decoder()
    decoder = _holding_layers(outer, name)
    # Where the decoder is a whole language model, the head may be known to it alone.
    owners = (one for one in (model, outer) if hasattr(one, "get_output_embeddings"))
    head = next((found for one in owners if (found := one.get_output_embeddings()) is not None), None)
    if head is None or getattr(head, "weight", None) is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load the class that has logits")
    text_config = model.config.get_text_config()
    width = getattr(text_config, "hidden_size", None)
    if not isinstance(width, int):
        raise UnsupportedModelError(f"{name}: its {type(text_config).__name__} names no hidden_size")
    if not isinstance(model, GenerationMixin):
        raise UnsupportedModelError(
            f"{name} is no GenerationMixin of transformers: it makes no text token by token"
        )
    return Decoder(
        model=model,
        layers=decoder.layers,
        norm=_final_norm(decoder, width, name),
        head=head,
        hidden_size=width,
        linear_logits=not getattr(text_config, "final_logit_softcapping", None),
    )


def _holding_layers(decoder: Any, name: str) -> Any:
    """The module that holds the list of layers: `decoder`, or what it wraps."""
    module = decoder
    while not (isinstance(getattr(module, "layers", None), nn.ModuleList) and len(module.layers)):
        inside = (getattr(module, attribute, None) for attribute in ("model", "decoder"))
        module = next((one for one in inside if isinstance(one, nn.Module)), None)
        if module is None:
            crossing = cross_attention(decoder)
            raise UnsupportedModelError(
                f"{name}: its decoder {type(decoder).__name__} has no list of `.layers`"
                + (f" and reaches the image by cross-attention ({crossing})" if crossing else "")
            )
    return module


def cross_attention(module: nn.Module) -> str | None:
    """The name of a part of `module` that attends to another sequence; None where there is none."""
    for path, part in module.named_modules():
        attribute = path.rpartition(".")[2]
        if "crossattention" in type(part).__name__.lower() or attribute in _CROSSING:
            return attribute
    return None


#: What decoder layers call an attention to another sequence.
_CROSSING = ("crossattention", "cross_attn", "encoder_attn")


def _final_norm(decoder: nn.Module, width: int, name: str) -> nn.Module:
    """The norm beside the layers; among several, the only one as wide as the residual stream."""
    norms = [m for _, m in decoder.named_children() if type(m).__name__.lower().endswith("norm")]
    if len(norms) > 1:
        norms = [m for m in norms if getattr(getattr(m, "weight", None), "shape", None) == (width,)]
    if len(norms) != 1:
        raise UnsupportedModelError(
            f"{name}: expected one final norm of width {width} beside the decoder's layers, found {len(norms)} "
            f"among {[n for n, _ in decoder.named_children()]}"
        )
    return norms[0]


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder layer: the outermost module in it that calls itself so.

    Raises:
        UnsupportedModelError: there is none.
    """
    for module in layer.modules():
        if module is not layer and is_attention(module):
            return module
    raise UnsupportedModelError(f"{type(layer).__name__} has no attention that could be found by its name")


def is_attention(module: nn.Module) -> bool:
    """Whether a module calls itself attention."""
    return "attention" in type(module).__name__.lower()


def first_tensor(output: Any) -> Tensor:
    """The hidden states of a decoder layer's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def replace_first(output: Any, hidden: Tensor) -> Any:
    """A decoder layer's output with its hidden states replaced by `hidden`."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@dataclass(frozen=True)
class ModelIdentity:
    """What a bank remembers of the model it was fitted for.

    Attributes:
        model_id: hub id, or the last part of a local folder's name.
        revision: commit of the hub repository; None for a local model.
        model_type: the config's `model_type`.
        hidden_size: width of the residual stream.
        num_layers: number of decoder layers.
        fingerprint: hash of a sample of every weight, rounded to bf16: the same whether a checkpoint
            is loaded in fp32 or bf16 (in fp16 too, if it was stored so). A quantised model has one of its own.
            None where the weights are not here (offloaded to the meta device).
        embedding: the same hash of the input embeddings and the final norm alone, which an engine that fuses or
            packs the other weights (vLLM) keeps as they are. None where they are not readable.
    """

    model_id: str
    revision: str | None
    model_type: str
    hidden_size: int
    num_layers: int
    fingerprint: str | None
    embedding: str | None = None


def identify(model: Any) -> ModelIdentity:
    """The identity of a loaded model."""
    decoder = find_decoder(model)
    path = str(getattr(model.config, "_name_or_path", "") or "")
    local = os.path.isdir(path)
    return ModelIdentity(
        model_id=(os.path.basename(os.path.normpath(path)) if local else path) or type(model).__name__,
        revision=None if local else getattr(model.config, "_commit_hash", None),
        model_type=str(model.config.model_type),
        hidden_size=decoder.hidden_size,
        num_layers=decoder.num_layers,
        fingerprint=fingerprint(_weights(decoder.model)),
        embedding=embedding_fingerprint(model.get_input_embeddings(), decoder.norm),
    )


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    # Some ways of quantising keep the weights in buffers.
    if getattr(model.config, "quantization_config", None) is not None:
        yield from model.named_buffers()


def embedding_fingerprint(embedding: nn.Module, norm: nn.Module, rows: int | None = None) -> str | None:
    """Hash of a sample of the input embeddings and the final norm; None where they are not readable.

    Args:
        embedding: with a `weight` of shape (vocabulary, hidden).
        norm: the decoder's final norm.
        rows: the vocabulary's size where the engine pads the matrix.
    """
    table, scale = getattr(embedding, "weight", None), getattr(norm, "weight", None)
    if table is None or scale is None:
        return None
    return fingerprint([("embedding", table[:rows]), ("norm", scale)])


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str | None:
    """Hash of a sample of every parameter, with its name; None where one is not here (on the meta device).

    Sampled and rounded to 8 bits of mantissa: cheap on a 70 B model, and the same for a checkpoint that was
    loaded in another precision. Integers, which quantised weights are, are taken as they are.
    """
    digest = hashlib.sha256()
    for name, parameter in parameters:
        if parameter.device.type == "meta":
            return None
        digest.update(name.encode())
        digest.update(_sample(parameter))
    return digest.hexdigest()


def _sample(parameter: Tensor) -> bytes:
    try:
        sample = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 64)][:64].cpu()
        if sample.is_floating_point():
            return sample.float().to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        return sample.numpy().tobytes()
    except (NotImplementedError, RuntimeError, TypeError):
        # A packed tensor that can't be sliced: kind and shape tell it from the weights that it was made of.
        return f"{type(parameter).__name__} {parameter.dtype} {tuple(parameter.shape)}".encode()
