"""Audio-only training data: WebDataset tars of the Emilia dataset, read without conversion."""
