"""Lets `python -m longctx` do what `longctx` does."""

from longctx.cli.entry import main

if __name__ == "__main__":
    main()
