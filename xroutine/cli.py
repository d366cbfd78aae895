"""The command line: ``python -m xroutine demo | info | verify``."""
