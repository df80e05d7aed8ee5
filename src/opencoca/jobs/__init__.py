"""Jobs: what a command does from start to end, wired from the parts."""
