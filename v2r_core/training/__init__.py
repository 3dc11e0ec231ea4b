"""One loop for every method, what it saves, and the watch that tells when a representation collapses."""
