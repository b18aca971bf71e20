"""Speech without pictures: Emilia's tars, read as they are."""
