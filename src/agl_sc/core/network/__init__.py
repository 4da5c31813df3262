"""The network, its inputs and losses, and the bi-level problem that they make."""
