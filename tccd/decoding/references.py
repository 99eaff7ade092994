"""The references that a contrast can be taken with, each made by one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor

from tccd.centroids.bank import CentroidBank
from tccd.data.pictures import GREY, picture_digest, to_rgb
from tccd.decoding.config import TCCDConfig
from tccd.engine.exits import EarlyExit
from tccd.engine.other_prompt import OtherPrompt
from tccd.engine.prefixes import KeptImage, Prefixes
from tccd.engine.twins import Erasure, MeanImage, OtherImage, Withheld
from tccd.errors import BankMismatchError, ConfigError
from tccd.inputs import encode
from tccd.modality import Modality


def no_vision(above: int | None = None) -> Withheld:
    """The image withheld, from the first layer on or above a layer; needs nothing fitted, costs the tail's rows.

    Args:
        above: the last decoder layer, from 0, in which the tail sees the image; None for no layer at all.

    Raises:
        ConfigError: no such layer, or the last one; raised where the model is known.
    """
    return Withheld() if above is None else Withheld(above)


def mean_vision(bank: CentroidBank) -> MeanImage:
    """The mean of many images in each image's place; costs the tail's rows and one more.

    Every vision token, at every layer, is the mean of those of the images that the bank was fitted on. Ours. Good
    where the prior is how often an answer is right whatever the image; fit it on 100 images or more.

    Args:
        bank: with a vision mean (`tccd fit` keeps one).

    Raises:
        BankMismatchError: the bank has none.
    """
    if bank.vision_mean is None:
        raise BankMismatchError(
            "the bank has no vision mean, which mean-vision needs; fit it again with `tccd fit`, which keeps one"
        )
    return MeanImage(bank.vision_mean)


def text_centroid(bank: CentroidBank, layer: int | None = None, alpha_interp: float = 0.4) -> Erasure:
    """The text tail moved to its nearest centroids after a layer (arXiv 2604.14363); what `TCCD` contrasts with.

    Args:
        bank: with text centroids at the layer. `bank.check(model)` says whether it belongs to a model.
        layer: decoder layer, from 0; the bank's only text layer when None.
        alpha_interp: what is kept of a state's offset from its centroid, 0 (nothing) to 1.

    Raises:
        BankMismatchError: the bank has no such entry.
        ConfigError: a value is out of range.
    """
    config = TCCDConfig(alpha_interp=alpha_interp, layer=layer)
    return centroid_erasure(bank, text_layer(bank, config.layer), config.alpha_interp)


def vision_centroid(bank: CentroidBank, layer: int, alpha_interp: float = 0.0) -> Erasure:
    """The vision tokens moved to their nearest centroids after a layer; costs all rows from the first of them on.

    Args:
        bank: with vision centroids at the layer.
        layer: decoder layer, from 0.
        alpha_interp: what is kept of a state's offset from its centroid, 0 (nothing) to 1.

    Raises:
        BankMismatchError: the bank has no such entry.
        ConfigError: a value is out of range.
    """
    config = TCCDConfig(alpha_interp=alpha_interp, layer=layer)
    return centroid_erasure(bank, layer, config.alpha_interp, "vision")


def early_exit(layers: str | int | Sequence[int] = "low") -> EarlyExit:
    """What the model would say at a lower layer (DoLa; Chuang et al., arXiv 2309.03883); costs a head row or more.

    Args:
        layers: one decoder layer, from 0, -1 for the embeddings; or several, of which the one farthest from the
            last layer is taken at each token; or "low" or "high", DoLa's candidates in the lower or upper half.
            Its authors use "low" for long answers and "high" for short ones.

    Raises:
        ConfigError: no such layers; raised where the model is known.
    """
    if isinstance(layers, str):
        return EarlyExit(layers)  # type: ignore[arg-type]
    return EarlyExit((layers,) if isinstance(layers, int) else tuple(layers))


def blank_image(
    processor: Any,
    images: Sequence[Sequence[Image]],
    prompts: Sequence[str],
    color: tuple[int, int, int] | Image = GREY,
    prefixes: Prefixes | None = None,
) -> KeptImage:
    """Another picture in each image's place, one that shows nothing (VCD with a blank image; arXiv 2311.16922).

    Its keys and values are computed once for each size of image and each text before it, and kept; so it costs a
    second pass the first time, and the tail's rows from then on.

    Args:
        processor: the model's.
        images: one sequence of PIL images a row, as for `tccd.inputs.encode`; only their sizes count.
        prompts: one a row, the very ones that are decoded.
        color: red, green and blue, 0 to 255; or a picture, which is stretched to each image's size.
        prefixes: where keys and values are kept; by default a store of the model's own, of half a GiB.

    Raises:
        ConfigError: not as many rows of images as prompts.
    """
    if len(images) != len(prompts):
        raise ConfigError(f"{len(images)} rows of images for {len(prompts)} prompts; give one sequence a prompt")
    sizes = [tuple(image.size for image in row) for row in images]
    shown = color if isinstance(color, tuple) else to_rgb(color)
    looks = shown if isinstance(shown, tuple) else picture_digest(shown)

    def instead(size: tuple[int, int]) -> Image:
        return shown.resize(size) if isinstance(shown, Image) else new_image("RGB", size, shown)

    def encoded(rows: Sequence[int]) -> Mapping[str, Any]:
        pictures = [[instead(size) for size in sizes[row]] for row in rows]
        return dict(encode(processor, pictures, [prompts[row] for row in rows]))

    return KeptImage(encoded, [(processor, looks, row) for row in sizes], prefixes)


def noised_image(inputs: Mapping[str, Any], step: int = 999, seed: int = 0) -> OtherImage:
    """The image itself under noise (VCD; Leng et al., CVPR 2024, arXiv 2311.16922); costs a second pass.

    The noise is that of the authors' diffusion schedule, added to the pixels as the processor gives them.

    Args:
        inputs: what the model is given, by name: the processor's output.
        step: of the schedule, 0 (hardly any noise) to 999 (hardly any image). Its authors use 500 to 999.
        seed: of the noise.

    Raises:
        ConfigError: no such step, or no pixels among the inputs.
    """
    if type(step) is not int or not 0 <= step < DIFFUSION_STEPS:
        raise ConfigError(f"step is {step!r}; expected 0 to {DIFFUSION_STEPS - 1}")
    names = [name for name in ("pixel_values", "pixel_values_videos") if inputs.get(name) is not None]
    if not names:
        raise ConfigError(f"the inputs hold no pixel_values to add noise to; they hold {', '.join(inputs)}")
    draws = torch.Generator().manual_seed(seed)
    return OtherImage(dict(inputs) | {name: _noised(inputs[name], step, draws) for name in names})


def other_prompt(
    processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Image]] | None = None
) -> OtherPrompt:
    """Other words before the same answer; costs a second pass over them, and over every token.

    With a misleading instruction ("You are a confused object detector.") before the same question, what that
    brings about is taken away (instruction contrastive decoding; Wang et al., arXiv 2403.18715). Without the
    instruction, what it asks for is stressed (classifier-free guidance; Sanchez et al., arXiv 2306.17806; in
    transformers' words `guidance_scale` is 1 + `alpha_cd`). It acts on prompts without an image too, and on
    language models: `tccd.engine.OtherPrompt(tokenizer(..., padding_side="left"))` there.

    Args:
        processor: the model's.
        prompts: one a row, in the order of the prompts that are decoded.
        images: one sequence of PIL images a row, usually those of the prompts that are decoded; None for words
            alone.

    Raises:
        DataError: not as many rows of images as prompts.
    """
    rows: Sequence[Sequence[Image]] = [()] * len(prompts) if images is None else images
    return OtherPrompt(dict(encode(processor, rows, prompts)))


#: Steps of VCD's diffusion schedule.
DIFFUSION_STEPS = 1000


def _noised(pixels: Tensor, step: int, draws: torch.Generator) -> Tensor:
    # The schedule of VCD's released code: variances on a sigmoid from 1e-5 to 5e-3.
    variances = torch.linspace(-6, 6, DIFFUSION_STEPS).sigmoid() * (5e-3 - 1e-5) + 1e-5
    kept = float((1 - variances).cumprod(0)[step])
    noise = torch.randn(pixels.shape, generator=draws).to(pixels)
    noised = kept**0.5 * pixels + (1 - kept) ** 0.5 * noise
    if pixels.ndim < 5:
        return noised
    # Tiles that are zero everywhere are padding to the model, and have to stay so.
    return torch.where(pixels.eq(0).flatten(-3).all(-1)[..., None, None, None], pixels, noised)


def text_layer(bank: CentroidBank, layer: int | None) -> int:
    """The layer whose text centroids are used: the one asked for, or the bank's only one.

    Raises:
        ConfigError: none was asked for and the bank has several, or none.
        BankMismatchError: the bank has no text entry at the layer.
    """
    if layer is None:
        found = bank.layers("text")
        if not found:
            raise ConfigError("the bank has no text centroids, which TCCD needs; fit text=LAYER (tccd fit)")
        if len(found) > 1:
            raise ConfigError(f"the bank holds text centroids of layers {list(found)}; say layer=...")
        return found[0]
    bank.centroids("text", layer)
    return layer


def centroid_erasure(
    bank: CentroidBank, layer: int, alpha_interp: float, modality: Modality = "text", segment: str | None = None
) -> Erasure:
    """Erase a modality by its bank's centroids at a layer.

    Raises:
        BankMismatchError: the bank has no such entry.
    """
    centroids = bank.centroids(modality, layer)

    def replace(hidden: Tensor, nearest: Tensor | None = None) -> Tensor:
        return centroids.to(hidden.device).replace(hidden, alpha_interp, nearest)

    return Erasure(layer, replace, modality, segment, search=centroids.search)
