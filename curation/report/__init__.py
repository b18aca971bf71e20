"""The report page of a corpus and the pages of its sources."""
