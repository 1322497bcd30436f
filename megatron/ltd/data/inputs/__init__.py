"""Input of preprocessing: from files of every kind to documents."""
