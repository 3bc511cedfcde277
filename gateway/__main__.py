"""``python -m gateway``: the gateway process, as ``mesh gateway`` starts it."""

import sys

from gateway.cli.serve import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
