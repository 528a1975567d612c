"""`python -m hub_loader` is `khub`."""

import sys

from .cli import main

sys.exit(main())
