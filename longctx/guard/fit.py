"""What a step's memory growth has been, fitted: two terms, recent steps count most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GrowthFit:
    """growth = a * tokens + b * tokens * (context + tokens), with a, b >= 0, plus a residual.

    The first term is what a step's activations cost, the second what materialised scores cost;
    neither can be negative, so the fit never promises that a larger step takes less. The residual
    is the largest amount by which a step exceeded the fit. Sums and residual decay with every
    observation.

    Args:
        decay: weight that an observation keeps when the next one arrives, 0..1.
        noise_bytes: what any step may take however small it is (thread stacks, a heap that grows by
            whole pages). It is predicted as a constant: laid on the terms, the noise of a first
            step of few tokens would be multiplied a thousandfold for a large one.
    """

    decay: float = 0.8
    noise_bytes: int = 0
    observations: int = 0
    largest_tokens: int = 0
    residual_bytes: float = 0.0
    _xx: float = 0.0
    _xz: float = 0.0
    _zz: float = 0.0
    _xy: float = 0.0
    _zy: float = 0.0

    def observe(self, tokens: int, context_tokens: int, growth_bytes: int) -> None:
        """Learn from a finished step; a negative growth (memory came back) counts as none."""
        x, z, y = (
            *self._terms(tokens, context_tokens),
            float(max(growth_bytes - self.noise_bytes, 0)),
        )
        for name, value in (
            ("_xx", x * x),
            ("_xz", x * z),
            ("_zz", z * z),
            ("_xy", x * y),
            ("_zy", z * y),
        ):
            setattr(self, name, getattr(self, name) * self.decay + value)
        self.observations += 1
        self.largest_tokens = max(self.largest_tokens, tokens)
        over = y - self._fitted(x, z)
        self.residual_bytes = max(self.residual_bytes * self.decay, over)

    def predict_bytes(self, tokens: int, context_tokens: int) -> int | None:
        """Fitted growth plus residual, None before anything was observed."""
        if self.observations == 0:
            return None
        fitted = self._fitted(*self._terms(tokens, context_tokens))
        return round(fitted + self.residual_bytes) + self.noise_bytes

    @staticmethod
    def _terms(tokens: int, context_tokens: int) -> tuple[float, float]:
        # Scaled to be of one size, so that the normal equations stay well conditioned.
        return float(tokens), tokens * (context_tokens + tokens) / 4096.0

    def _fitted(self, x: float, z: float) -> float:
        a, b = self._coefficients()
        return a * x + b * z

    def _coefficients(self) -> tuple[float, float]:
        determinant = self._xx * self._zz - self._xz * self._xz
        if determinant > 1e-9 * self._xx * self._zz:
            a = (self._xy * self._zz - self._zy * self._xz) / determinant
            b = (self._zy * self._xx - self._xy * self._xz) / determinant
            if a >= 0 and b >= 0:
                return a, b
        # On the edge of what is allowed, one term alone explains most; take the better one. Steps
        # that were all alike cannot tell the terms apart: then the one that grows faster is taken.
        only_a = self._xy / self._xx if self._xx > 0 else 0.0
        only_b = self._zy / self._zz if self._zz > 0 else 0.0
        gain_a, gain_b = only_a * self._xy, only_b * self._zy
        if gain_b >= gain_a * (1 - 1e-9):
            return 0.0, only_b
        return only_a, 0.0
