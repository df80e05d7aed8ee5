"""Models in other programs' formats: key maps in both directions, the hub, exports."""
