"""Numbers in words."""


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(45), duration(125), duration(7500)
        ('45 s', '2 min 05 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
