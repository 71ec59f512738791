"""A package, not only a folder: pytest ends what a package shares with its last test."""
