"""`python -m selfheal` is `selfheal`."""

from __future__ import annotations

from selfheal.cli import main

if __name__ == "__main__":
    main(prog_name="selfheal")
