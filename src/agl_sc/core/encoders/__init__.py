"""From tiles to features: encoders of timm, of pathology and of the user, and how tiles pass through them."""
