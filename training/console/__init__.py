"""What a user meets in a terminal: errors in a line, bars, signals."""
