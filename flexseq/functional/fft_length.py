"""Lengths at which an FFT is fast."""

from functools import lru_cache

PER_POINT = 2.0
"""What else than the transform a point costs: it is moved and multiplied. In the units of what a point of a power of two costs in one."""
FACTORS = {3: 0.17, 5: 0.33, 7: 0.37}
"""How much more for each such factor; and half for having a single factor of two. Of MKL, fitted to 179 lengths from 64 to 4,200: half of
them lie within 12 %. Not measured on GPUs."""


@lru_cache(maxsize=4096)
def fft_length(at_least: int) -> int:
    """The even number from `at_least` on, of prime factors 2, 3, 5 and 7, at which a convolution through FFTs is cheapest.

    Even, because a real transform of even length runs as a complex one of half the length. Not the smallest: 2^10 is faster than
    2^2 * 3^5, though it is longer.

    Example:
        >>> [fft_length(n) for n in (1, 7, 17, 321, 31999)]
        [2, 8, 20, 336, 32768]
    """
    best, least = 2, float("inf")
    while best < at_least:
        best *= 2
    for length in _smooth(max(2, at_least), best):
        cost = length * (PER_POINT + 1 + _more(length))
        if cost < least:
            best, least = length, cost
    return best


def _smooth(least: int, most: int) -> list[int]:
    """Even numbers of prime factors 2, 3, 5 and 7, ascending."""
    found = []
    seven = 1
    while seven <= most:
        five = seven
        while five <= most:
            three = five
            while three <= most:
                two = 2 * three
                while two < least:
                    two *= 2
                if two <= most:
                    found.append(two)
                three *= 3
            five *= 5
        seven *= 7
    return sorted(found)


def _more(length: int) -> float:
    more = 0.5 if length % 4 else 0.0
    for factor, cost in FACTORS.items():
        while length % factor == 0:
            length //= factor
            more += cost
    return more
