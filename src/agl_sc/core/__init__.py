"""Arrays in, arrays out: nothing here knows AnnData, SpatialData or a slot name."""
