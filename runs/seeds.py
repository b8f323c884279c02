"""Seeds as people write them."""

SEEDS_BELOW = 2**32 - 1000  # environments seed a few more from there on


def parse_seeds(text: str) -> list[int]:
    """`5` is 0 to 4, `3,7` and `3,` are those, each once; a `ValueError` for anything else."""
    parts = text.strip().removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(text) > 100_000:
        raise ValueError(f"`seeds` must be a number of seeds such as 5, or seeds such as 3,7 or 3, — got {text!r}")
    numbers = [int(part) for part in parts]
    if "," in text:
        if len(set(numbers)) < len(numbers) or max(numbers) >= SEEDS_BELOW:
            raise ValueError(
                f"`seeds` must be different whole numbers below {SEEDS_BELOW}, got {text!r}; name each once"
            )
        return numbers
    if not 1 <= numbers[0] <= 10_000:
        raise ValueError(f"`seeds` must be from 1 to 10000 runs, or seeds such as 3,7 or 3, — got {text!r}")
    return list(range(numbers[0]))
