"""The same numbers as `reference`, fused with the update of the weights and compiled by numba.

The work takes one pass over memory.

- `kernels` are called from Python, and `combination` is their work.
- `philox` makes random words; `normals` and `draws` make noise of them.
- `memory` and `halves` read and write weights.
- `instructions` adds things that numba lacks.

The slowest parts are made of vectors of our own (`lanes`). Several stand side by side, since each
operation waits for the last one. Every other loop over a tile is plain enough for LLVM to make
vectors of it.
"""
