"""Cross-validation, arms, reports, and the protocol of the paper."""
