"""lm-eval with our models: the model class, the command, tasks and requests."""
