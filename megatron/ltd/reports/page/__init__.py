"""One run as one HTML page: what it was asked for, what it did, how well it went, what was unusual."""
