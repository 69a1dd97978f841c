"""What several benchmarks measure with and measure."""
