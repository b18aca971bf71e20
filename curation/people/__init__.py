"""Who is one person across sources, and the train/val split by person."""
