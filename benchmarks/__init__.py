"""Figures of graphc: ``python -m benchmarks --help``.

How they are measured, and what they are: docs/performance.md.
"""
