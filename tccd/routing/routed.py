"""A routed model, through two doors."""

from __future__ import annotations

from typing import Any, Literal

from tccd.decoder import find_decoder
from tccd.errors import ConfigError
from tccd.generation import Door
from tccd.routing.branch import Branch, check_range
from tccd.routing.branchfile import check_branch
from tccd.routing.cache import Memory
from tccd.routing.session import Route, RoutedSession
from tccd.routing.support import check_decoder


class Routed(Door):
    """A vision-language model whose image rows leave the deep layers (DPVR-LF, arXiv 2606.09131).

    Layers below `split` run every row. From there on the text's rows run alone, at the positions that they have in
    the prompt, while the image's rows take the branch. The last `fuse` layers run all of them. Text means every
    token but the image's own: system tokens, markers around an image, and what is generated.

    Decoding uses the model's cache, exactly: a routed layer keeps no image, so its keys and values take less.

    Two doors:

    - `model.generate(**inputs, custom_generate=routed)`: greedy, sampling, beams, assisted and prompt-lookup
      decoding, streamers included.
    - `with routed: ...`: every call of the model in this thread, by whatever calls it; also with gradients, to
      train a branch.

    There is no logits processor: a processor sees logits, and a route changes what is run to get them.

    Args:
        model: a loaded model with a language-model head, in eval mode.
        split: the first layer that the image's rows do not run, from 0. Where to put it, `tccd probe saturation`
            measures; the paper takes 18 of 32 layers. None with a `Branch`: the one that it was made for.
        fuse: how many last layers run whole again; the published one is 1. None: the branch's own, or 1.
        branch: what the image's rows run in the place of the routed layers. A `Branch`: the paper's. "identity":
            nothing, they wait; the control of a branch that is trained. "none": nothing, and no layer runs them
            again, which is Visual Tokens Withdrawal (VTW, AAAI 2025); takes no `fuse`.

    Attributes:
        route: what was asked for, by layers.

    Raises:
        ConfigError: a setting is out of range, or contradicts the branch.
        BranchMismatchError: the branch was made for another model.
        UnsupportedModelError: routing is not exact for this model.

    Example:
        >>> from PIL import Image
        >>> from tccd.inputs import encode
        >>> from tccd.routing import Routed
        >>> inputs = encode(processor, [[Image.new("RGB", (64, 64))]], ["what shape is in the image?"])
        >>> routed = Routed(model, split=2, branch="identity")
        >>> model.generate(**inputs, custom_generate=routed, max_new_tokens=4).shape[0]
        1
        >>> 0 < routed.memory.saved < 1
        True
    """

    def __init__(
        self,
        model: Any,
        split: int | None = None,
        fuse: int | None = None,
        branch: Branch | Literal["identity", "none"] = "identity",
    ) -> None:
        super().__init__(model)
        self.decoder = find_decoder(model)
        check_decoder(self.decoder)
        self.route = _route(self.decoder.num_layers, *self._settled(split, fuse, branch), branch)

    def _settled(self, split: int | None, fuse: int | None, branch: Branch | str) -> tuple[int, int]:
        if isinstance(branch, Branch):
            check_branch(branch, self.model)
            for name, value in (("split", split), ("fuse", fuse)):
                made = getattr(branch.settings, name)
                if value is not None and value != made:
                    raise ConfigError(f"{name} is {value!r}, but the branch was made for {made}; leave {name} out")
            split, fuse = branch.settings.split, branch.settings.fuse
        elif branch not in ("identity", "none"):
            raise ConfigError(f"branch is {branch!r}; expected a Branch, 'identity' or 'none'")
        elif split is None:
            raise ConfigError(f"branch {branch!r} says no layer to leave at; give split")
        withdrawn = branch == "none"
        if withdrawn and fuse:
            raise ConfigError(
                f"branch 'none' withdraws the image for good, so fuse {fuse!r} would do nothing; leave it out"
            )
        fuse = (0 if withdrawn else 1) if fuse is None else fuse
        check_range(self.decoder, split, fuse)
        if not fuse and not withdrawn:
            raise ConfigError(
                "fuse is 0: without a layer that runs all rows nothing reads the image's; expected 1 or more, or "
                "branch='none'"
            )
        return split, fuse

    @property
    def fuse(self) -> int:
        """How many last layers run whole again; 0 where the image is withdrawn for good."""
        return self.decoder.num_layers - self.route.stop

    def __repr__(self) -> str:
        branch = repr("identity" if self.fuse else "none") if self.route.branch is None else "a branch"
        name = type(self.model).__name__
        return f"Routed({name}, split={self.route.split}, fuse={self.fuse}, branch={branch})"

    def session(self, prompt_length: int | None = None) -> RoutedSession:
        """A fresh session; `memory` is of the last one of this thread."""
        session = RoutedSession(self.decoder, self.route, self)
        self._local.last = session
        return session

    @property
    def memory(self) -> Memory | None:
        """Bytes of keys and values after this thread's last forward; None where it had no cache."""
        session = getattr(self._local, "last", None)
        return None if session is None else session.memory


def _route(layers: int, split: int, fuse: int, branch: Branch | str) -> Route:
    return Route(split, layers - fuse, branch if isinstance(branch, Branch) else None)
