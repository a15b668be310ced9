"""What a benchmark integrates, and the reference solution that errors are measured against."""
