"""Pictures and captions, from files to arrays."""
