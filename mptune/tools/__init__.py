"""A trained model in use: score it, fill in missing values."""
