"""`python -m folovllm` is the same as the `folovllm` command."""

import sys

from folovllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
