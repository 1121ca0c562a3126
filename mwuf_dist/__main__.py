"""`python -m mwuf_dist` and `torchrun -m mwuf_dist`: the same as `mwuf`."""

import os
import sys

from mwuf_dist.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or isinstance(end.code, str):
            raise
        # A rank has nothing left to do, and threads of torch's that outlive the process group. While the interpreter is
        # taken down, one run in some fifty was aborted by them ("terminate called without an active exception").
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
