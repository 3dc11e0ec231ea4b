"""What is labelled, to be looked at: opened in one way, as a page, in Rerun."""
