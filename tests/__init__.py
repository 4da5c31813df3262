"""A package, so that no package of this name that a dependency installs is taken for it."""
