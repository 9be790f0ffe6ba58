"""``python -m graphopt``."""

from .cli import main

main()
