"""What each command of `sluice` reads and prints; `cli/main.py` puts them together."""
