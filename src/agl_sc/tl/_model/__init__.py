"""Training and prediction of one model."""
