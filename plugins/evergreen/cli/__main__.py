"""``python -m evergreen.cli``."""

from evergreen.cli import main

main()
