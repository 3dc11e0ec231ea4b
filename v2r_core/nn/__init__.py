"""Building blocks that several methods share. Nothing in here knows a method, a file or a trainer."""
