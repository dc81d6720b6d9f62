"""A plugin of selfheal; see the README beside `src`."""
