"""graphc beside its peers: ``python -m benchmarks --help``.

How to run it and what is measured: docs/benchmarks.md. What was found: docs/performance.md.
"""
