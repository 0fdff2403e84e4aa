"""The command line: the options and the output of each command of `sluice`. `cli/main.py` assembles them."""
