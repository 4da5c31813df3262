"""Training, validation and test spots, folds, and what they still share."""
