"""What an error of a library says, short enough for a message of one line."""


def one_line(error: Exception) -> str:
    """All that the error says, with its line breaks as spaces."""
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """The first line of what the error says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
