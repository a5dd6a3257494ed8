"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one pass over memory.

`kernels` are called from Python, `combination` is what they do, `draws` makes the noise, `memory` and `halves` read and
write weights, `instructions` are what numba lacks. Signs are added by vector instructions of our own; every other loop
over a tile is plain enough for LLVM to make them.
"""
