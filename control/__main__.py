"""`python -m control` is `sluice`."""

from control.cli import main

main()
