"""The asv suite: one module for each phase of a run. See docs/benchmarks.md."""
