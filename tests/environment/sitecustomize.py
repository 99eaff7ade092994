"""Makes PyPI's torchvision and its sisters bearable beside a torch they were not built for; for tests only.

The Makefile copies this file into the site-packages of the test environment. There, vLLM's CPU build brings a
CPU torch, and torchvision, torchaudio and torchcodec from PyPI, whose compiled parts want CUDA's torch:

- `import torchvision` fails because it registers fake kernels for `torchvision::nms` and `torchvision::qnms`,
  which its library never came to define. vLLM's multimodal models import it but use neither operator:
  declaring the two schemas first is enough (a call of one still fails, as it should).
- `import torchaudio` and `import torchcodec` fail for good, and transformers and vLLM import them wherever
  they find them, whatever the model. Nobody here needs sound: they are hidden.

Programs that import none of them pay nothing: torch is imported only when torchvision is. Don't use this file
beside a torch that torchvision fits; it would find its schemas taken.
"""

import sys
from importlib.machinery import PathFinder

HIDDEN = {"torchaudio", "torchcodec"}
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class Finder(PathFinder):
    """Python's own path finder, but it declares torchvision's schemas first and is blind to `HIDDEN`."""

    library = None  # kept: a torch.library.Library undefines its operators when it is collected

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """As `PathFinder.find_spec`."""
        if fullname in HIDDEN:
            return None
        # `importlib.util.find_spec("torchvision")`, which only asks, comes here too: harmless but for torch's
        # import
        if fullname == "torchvision" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in SCHEMAS:
                cls.library.define(schema)
        return super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
