"""What reads logs and result files: summaries, tables, figures, pages."""
