import sys

from medfocus.pipeline.cli import main

sys.exit(main())
