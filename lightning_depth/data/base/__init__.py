"""What data sets share: sources, arrays in memory, batches."""
