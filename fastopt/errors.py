"""The errors that are fastopt's own."""


class BackendUnavailable(RuntimeError):
    """A backend is needed that is not here: the message says what is missing and the command that installs it."""
