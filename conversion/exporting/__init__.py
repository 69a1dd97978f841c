"""Export: a stored model as files of other runtimes."""
