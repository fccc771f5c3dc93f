"""``python -m ebmcore`` is the command ``ebmcore``."""

import sys

from ebmcore.cli import main

sys.exit(main())
