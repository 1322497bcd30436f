"""What benchmarks share: flags and pages, books as data, training runs and what they reached, estimates over seeds."""
