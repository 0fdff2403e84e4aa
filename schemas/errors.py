"""The base of all errors that an operator can fix."""

EXIT_OPERATOR = 2


class OperatorError(Exception):
    """A wrong setting or a missing service. The message is one line that names the setting and the remedy; exit code 2."""
