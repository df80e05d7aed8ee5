"""Finding pictures by sentences."""
