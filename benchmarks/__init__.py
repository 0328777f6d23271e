"""`make bench`: ratios taken in one run, medians over rounds; written to `benchmarks/<machine>.md`."""
