"""Word error rate: the transcript of generated speech against the given text."""

from __future__ import annotations

from dataclasses import dataclass

from uniavgen.shards.text import plain_text


@dataclass(frozen=True)
class WordErrors:
    """Edits from the given text to the transcript, and the number of given words."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def rate(self) -> float:
        """Errors over given words; above 1 with many insertions, never clipped."""
        return (self.substitutions + self.deletions + self.insertions) / self.words


def word_errors(given: str, transcript: str) -> WordErrors | None:
    """Word edits after lower-casing and removal of punctuation (`plain_text`); None if no words are given.

    An empty transcript has all given words as deletions.
    """
    import jiwer

    reference, hypothesis = plain_text(given), plain_text(transcript)
    if not reference:
        return None
    if not hypothesis:
        count = len(reference.split())
        return WordErrors(0, count, 0, count)
    found = jiwer.process_words(reference, hypothesis)
    count = found.hits + found.substitutions + found.deletions
    return WordErrors(found.substitutions, found.deletions, found.insertions, count)
