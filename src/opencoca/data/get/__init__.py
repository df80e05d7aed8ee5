"""Data sets that package tools deliver: `coca data get`."""
