"""``python -m medfocus``: the same as the command ``medfocus``."""

import sys

from medfocus.pipeline.cli import main

sys.exit(main())
