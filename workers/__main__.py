"""`python -m workers MODULE:APP`."""

import os
import sys

from workers.service import main

if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Handlers' threads that hang must not hold the interpreter's shutdown.
    os._exit(status)
