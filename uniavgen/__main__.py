"""`python -m uniavgen`: the command line."""

import os
import sys

# `python -m` puts the current folder first: a user's own train.py or types.py must not be imported from there
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from uniavgen.orchestration.cli import main

main()
