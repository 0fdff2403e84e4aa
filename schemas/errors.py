"""The base of every error that an operator can mend."""


class OperatorError(Exception):
    """A wrong setting or a missing service. The message is one line that names the setting and the remedy; exit code 2."""
