"""The demo corpus: source videos made from real speech and a real photograph, with the truth about them."""
