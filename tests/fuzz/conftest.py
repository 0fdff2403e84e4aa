"""The fuzzer's wheels exist for Linux on x86-64 only."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("atheris") else ["test_guided.py"]
