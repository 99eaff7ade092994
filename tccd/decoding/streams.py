"""Moved to `tccd.engine.reference`."""

from tccd.engine.reference import Erasure as Erasure
