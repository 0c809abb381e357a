"""Benchmarks with intervals, before/after comparisons and the report page."""
