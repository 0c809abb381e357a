"""Studies of stability: the same run in many arms and seeds."""
