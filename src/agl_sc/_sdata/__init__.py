"""What touches SpatialData: elements in as arrays, results out as slots."""
