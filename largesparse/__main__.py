"""`python -m largesparse`: the same as the console script."""

import sys

from .commands.main import main

sys.exit(main())
