"""What is integrated in a benchmark, and the reference solution that errors are measured against."""
