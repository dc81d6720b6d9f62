"""Pure functions over records: what happened, counted. No store, no clock, no chance; the answers are made in `views`.

`spans` is arithmetic with stretches of time, `timeline` folds records into who was watched, down or excused when,
`repairs` into which step healed what, `availability` makes the numbers of both.
"""
