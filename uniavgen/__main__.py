"""`python -m uniavgen`: the command line."""

from uniavgen.orchestration.cli import main

main()
