"""What each command of `sluice` reads and prints; `control/cli.py` puts them together."""
