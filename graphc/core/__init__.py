"""What both modes stand on: dtypes, sizes, tensors, ops, the one door, and the one reverse walk.

Imports NumPy alone.
"""
