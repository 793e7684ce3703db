"""Faults put into slimming on purpose, to see whether the verifier notices.

A kind of fault is a generator: it yields, for every place of a correctly slimmed model where the
fault can be put, what must be verified instead. Faults that change nothing are not yielded.
"""
