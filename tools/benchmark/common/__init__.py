"""What benchmarks that train share: books as data, runs at work and what they reached, estimates over seeds."""
