"""What the set-up raises when it can't go on for a reason that a user can act on."""


class SetupError(Exception):
    """Says what is wrong, where, and what to do. Shown as it is, without a traceback."""
