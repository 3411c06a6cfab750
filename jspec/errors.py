"""User mistakes: one line that says what was expected, what was given and what to do."""


class UserError(ValueError):
    """Something the user asked for cannot be done. The command line exits 2 with its one line."""
