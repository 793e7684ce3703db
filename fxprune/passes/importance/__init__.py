"""Importance: what the positions of every group are worth, and in which order they go."""

from fxprune.passes.importance.base import Importance, Saliency
from fxprune.passes.importance.magnitude import magnitude
from fxprune.passes.importance.taylor import taylor

__all__ = ["Importance", "Saliency", "magnitude", "taylor"]
