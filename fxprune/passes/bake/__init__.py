"""Weights that are computed from parameters become parameters, where computing them keeps channels.

Spectral norm, weight standardisation and their like take statistics of a weight over positions that
could be slimmed otherwise. In evaluation mode such a function has one value, so that value takes
its place, as a parameter of the weight's own name: the network computes what it did before, and all
its layers can be slimmed. From then on the computed weight is trained, not what it was made from.

A function that keeps nothing which would be free without it stays as it is.
"""

from fxprune.passes.bake.baking import bake

__all__ = ["bake"]
