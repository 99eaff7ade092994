"""Routing: the image's rows leave the deep layers, and come back for the last ones (DPVR, arXiv 2606.09131).

A vision-language model may have read what it needs of an image well before its last layer; `tccd probe saturation`
says where. From there on the image's rows, most of a prompt, cost time and cache without changing the answer.

How it works, in the order to read it:

- `routed`: the model with a route, and the doors to it.
- `session`: one forward. Which rows each layer runs, and where the image's come back.
- `columns`: which columns run together and what they see of each other, as functions of tensors.
- `cache`: routed layers keep text columns only, and answer for all of them.
- `branch`, `branchfile`: one layer for the image's rows, and its file.
- `training`: how a branch is trained.
- `support`: what routing is not exact for, refused before the first token.
"""

from tccd.routing.branch import Branch, BranchSettings
from tccd.routing.branchfile import load_branch, save_branch
from tccd.routing.cache import Memory
from tccd.routing.routed import Routed

__all__ = ["Branch", "BranchSettings", "Memory", "Routed", "load_branch", "save_branch"]
