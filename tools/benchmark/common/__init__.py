"""Shared parts of the benchmarks: flags and pages, books as data, training runs and their results, estimates over
seeds.
"""
