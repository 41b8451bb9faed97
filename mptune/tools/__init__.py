"""A trained model in use: score it, verify the estimator, fill in missing values."""
