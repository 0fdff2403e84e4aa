"""Servers, processes and data that tests of several folders and the benchmarks share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
