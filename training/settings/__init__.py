"""What a person can set: a dataclass for each owner, and the command line that fills them."""
