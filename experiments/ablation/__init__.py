"""The paper's ablations on small photographs: what is replaced, the arms, their runs, tests and results."""
