"""The same numbers as `reference`, fused with the update of the weights and compiled by numba: one
pass over memory.

`kernels` are called from Python, `combination` is what they do; `philox` makes random words,
`normals` and `draws` make noise of them; `memory` and `halves` read and write weights;
`instructions` are what numba lacks. What takes most of the time is made of vectors of our own
(`lanes`), several side by side, since each operation waits for the last one; every other loop over
a tile is plain enough for LLVM to make vectors of it.
"""
