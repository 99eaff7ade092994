"""The side branch: one layer of the model's own shape, which the image's rows run in place of the deep stack."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tccd.decoder import Decoder, ModelIdentity, find_decoder, first_tensor, identify
from tccd.engine.arguments import cache_of, with_cache
from tccd.engine.installation import is_installed
from tccd.errors import ConfigError, UnsupportedModelError

Start = Literal["random", "copy"]
Mask = Literal["model", "full"]
Positions = Literal["original", "none"]


@dataclass(frozen=True)
class BranchSettings:
    """What a branch is, beside its weights. The paper states neither its start nor its mask nor its positions.

    Attributes:
        split: the first layer that the image's rows do not run; the branch reads what layer `split - 1` gave.
        fuse: how many last layers run whole again, over the branch's output and the text. The published one is 1;
            2 to 4 were no better there.
        start: of its weights. "random": drawn as the model's own layers were before they were trained, which the
            paper implies. "copy": those of layer `split`, so that training starts from what the model itself would
            do next.
        mask: which image rows see which. "model": those that the model's own mask lets, earlier ones in most
            families. "full": all rows of all images in the prompt.
        positions: of its rows. "original": those that they have in the prompt. "none": no rotation.
        seed: of random weights.
    """

    split: int
    fuse: int = 1
    start: Start = "random"
    mask: Mask = "model"
    positions: Positions = "original"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("start", Start), ("mask", Mask), ("positions", Positions)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ConfigError(f"{name} is {value!r}; expected {' or '.join(get_args(kind))}")
        for name in ("split", "fuse", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{name} is {value!r}; expected an integer, 0 or more")


class Branch(nn.Module):
    """One decoder layer for the image's rows.

    Made by `Branch.new`, or read by `tccd.routing.branchfile.load_branch`.

    Args:
        layer: a decoder layer of the model's own kind, of which nothing else holds a weight.
        settings: what it is.
        identity: of the model that it is for.

    Attributes:
        layer, settings, identity: as given.
    """

    def __init__(self, layer: nn.Module, settings: BranchSettings, identity: ModelIdentity) -> None:
        super().__init__()
        self.layer = layer
        self.settings = settings
        self.identity = identity

    @classmethod
    def new(cls, model: Any, split: int, fuse: int = 1, **settings: Any) -> Branch:
        """A branch that is not trained yet.

        Args:
            model: the model, as `find_decoder` takes it.
            split, fuse, settings: see `BranchSettings`.

        Raises:
            ConfigError: a setting is out of range; the model decodes under a session.
            UnsupportedModelError: the layer's weights are quantised or not here, so none like it can be made.

        Returns:
            On the device of layer `split`, in fp32, in eval mode.
        """
        chosen, decoder = BranchSettings(split, fuse, **settings), find_decoder(model)
        check_range(decoder, split, fuse)
        layer = _like(decoder, split)
        if chosen.start == "random":
            _draw(decoder, layer, chosen.seed)
        return cls(layer.float(), chosen, identify(model)).eval()

    @property
    def parameters_in_all(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())

    def share(self, model: nn.Module) -> float:
        """Its weights over all of them, the model's and its own: what is trained of what runs."""
        mine = self.parameters_in_all
        return mine / (mine + sum(p.numel() for p in model.parameters()))

    def forward(self, states: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Run the image's rows.

        Args:
            states: shape (batch, places, hidden).
            kwargs: the layer's other arguments for these places, the mask among them; of a cache it has none.

        Returns:
            The same shape and dtype, whatever the branch's own precision.
        """
        weight = next(self.parameters())
        mine = {name: _cast(value, weight) for name, value in kwargs.items()}
        if cache_of(mine) is not None:
            mine = with_cache(mine, None)
        if self.settings.positions == "none":
            mine |= {name: _unrotated(mine[name]) for name in mine if name.startswith("position_embeddings")}
        mine = {name: False if name == "use_cache" else value for name, value in mine.items()}
        return first_tensor(self.layer(_cast(states, weight), **mine)).to(states)


def check_range(decoder: Decoder, split: int, fuse: int) -> None:
    """Refuse a route that the model has no layers for.

    Raises:
        ConfigError: says which layers there are.
    """
    layers = decoder.num_layers
    for name, value in (("split", split), ("fuse", fuse)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < layers:
            raise ConfigError(
                f"{name} is {value!r}; this model has {layers} decoder layers, so expected 0 to {layers - 1}"
            )
    if split + fuse > layers:
        raise ConfigError(
            f"split {split} and fuse {fuse} leave no layer between: this model has {layers} decoder layers, so "
            f"with fuse {fuse} expected a split of at most {layers - fuse}"
        )


def _like(decoder: Decoder, index: int) -> nn.Module:
    """A copy of a decoder layer, free of any session."""
    if is_installed(decoder.model):
        raise ConfigError("a session is on the model; make the branch before it, or after")
    layer = decoder.layers[index]
    wrong = [name for name, p in layer.named_parameters() if not p.is_floating_point() or p.device.type == "meta"]
    if wrong or not list(layer.parameters()):
        raise UnsupportedModelError(
            f"decoder layer {index} has weights that are quantised or not in memory ({', '.join(wrong[:3])}), so "
            "no branch of its shape can be made; load the model in float32, bfloat16 or float16"
        )
    made = copy.deepcopy(layer)
    for module in made.modules():
        module.__dict__.pop("forward", None)  # of accelerate, which moves the original's weights
        module.__dict__.pop("_hf_hook", None)
        module._forward_hooks.clear()  # of whoever records the original's outputs
        module._forward_pre_hooks.clear()
    return made.requires_grad_(True)


def _draw(decoder: Decoder, layer: nn.Module, seed: int) -> None:
    """Draw a layer's weights as the model's family does before training."""
    # The innermost model around the layers knows how: it may draw its norms otherwise than the whole does.
    around = [one for one in decoder.model.modules() if isinstance(one, PreTrainedModel)]
    draw = [one for one in around if any(part is decoder.layers for part in one.modules())][-1]._init_weights
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        device = next(layer.parameters()).device
        layer.cpu()  # so that a seed means the same everywhere
        for module in layer.modules():
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            module._is_hf_initialized = False  # type: ignore[assignment]
            draw(module)
        layer.to(device)


def _cast(value: Any, like: Tensor) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_cast(one, like) for one in value)
    if isinstance(value, Tensor):
        return value.to(like) if value.is_floating_point() else value.to(like.device)
    return value


def _unrotated(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2:
        cosine, sine = value
        return torch.ones_like(cosine), torch.zeros_like(sine)
    raise UnsupportedModelError(
        f"positions='none' needs rotations as a cosine and a sine; this model's are a {type(value).__name__}"
    )
