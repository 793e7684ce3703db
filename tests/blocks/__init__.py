"""Small modules, each written the way people write them, for random networks.

Shapes are given without the batch dimension: an image is `(C, H, W)`, tokens are `(T, C)`, a vector
is `(C,)`. Every block keeps samples apart, so that a batch of four is two batches of two.
"""
