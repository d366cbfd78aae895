"""``python -m xroutine``."""

from xroutine.cli import main

main()
