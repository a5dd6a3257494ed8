"""`python -m dopaminergic`: the command line."""

import sys

from dopaminergic.lab.cli import main

sys.exit(main())
