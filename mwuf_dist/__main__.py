"""`python -m mwuf_dist` and `torchrun -m mwuf_dist`: the same as `mwuf`."""

from mwuf_dist.cli import main

if __name__ == "__main__":
    main()
