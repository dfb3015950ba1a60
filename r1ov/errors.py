"""The one exception that means "the user can mend this": its message is one line for a person."""


class UserError(ValueError):
    """A mistake in what was given to r1ov: what was found, what was expected, what to do, in one line.

    The command lines print the message and exit with status 2; any other exception is a crash (status 1).
    """
