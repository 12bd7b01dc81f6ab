"""noray: supervise NVIDIA Dynamo and its workers as plain process trees. See README.md for the map of this package."""
