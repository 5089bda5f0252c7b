"""What a part of a step costs: seconds that no N changes, and terms that may."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.principle.terms import FloatArray, Terms, add_terms, sum_terms


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: what no N changes, and terms that may."""

    fixed: float
    terms: Terms

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.fixed + other.fixed, add_terms(self.terms, other.terms))

    def times(self, factor: float) -> Cost:
        """The same work, ``factor`` times."""
        terms: Terms = {limit: factor * seconds for limit, seconds in self.terms.items()}
        return Cost(factor * self.fixed, terms)

    def seconds(self) -> FloatArray:
        """All of it, for each N."""
        return self.fixed + sum_terms(self.terms)


NOTHING = Cost(0.0, {})


def growing(seconds: FloatArray) -> Cost:
    """Small kernels: their time at the first N is fixed, their growth memory's."""
    return Cost(float(seconds[0]), {"memory": seconds - seconds[0]})
