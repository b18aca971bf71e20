"""One tar of samples: written whole, opened with care, indexed."""
