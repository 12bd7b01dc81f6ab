"""`python -m supervisor` is `noray`: how a controller is started in the background, wherever it is installed."""

import sys

from supervisor.cli import main

sys.exit(main())
