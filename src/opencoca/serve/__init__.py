"""A model behind HTTP: batches across requests, limits on everything that comes in, and a page in the browser."""
