"""Register tiles: the micro-kernels of contractions, from a machine's registers to vector instructions.

`machine.py` says what registers there are, `tiling.py` cuts a contraction into tiles and writes the loops
around them, `form.py` is a tile as emitted source names it, with its NumPy body, and `build.py` makes
LLVM IR of one.
"""
