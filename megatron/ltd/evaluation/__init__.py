"""What comes after training: loading weights, generating text, comparing runs."""
