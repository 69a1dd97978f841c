"""Names of splits of data sets."""

HELD_OUT = ("validation", "val", "valid", "dev", "test", "testing", "eval", "evaluation")  # in order of preference
