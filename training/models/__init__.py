"""Everything a model needs before training: creation or loading, teachers, optimizer and moving average."""
