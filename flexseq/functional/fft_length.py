"""Lengths at which an FFT is fast."""

from functools import lru_cache


@lru_cache(maxsize=4096)
def fft_length(at_least: int) -> int:
    """The smallest even number >= `at_least` whose prime factors are 2, 3 and 5.

    Even, because a real transform of even length runs as a complex one of half the length.

    Example:
        >>> [fft_length(n) for n in (1, 7, 17, 31999)]
        [2, 8, 18, 32000]
    """
    best = 2
    while best < at_least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            candidate = 2 * three
            while candidate < at_least:
                candidate *= 2
            best = min(best, candidate)
            three *= 3
        five *= 5
    return best
