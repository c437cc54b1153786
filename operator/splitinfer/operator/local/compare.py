"""What is observed beside what was to be expected of it, as plain data and as lines for a person. Pure.

The expectation is for the traffic that is observed, with the plan that serves and the snapshot that it was made with: see
`splitinfer.operator.planning.forecast`. Where nothing was observed, or nothing can be expected, that is said with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitinfer.operator.local.control import Recent
from splitinfer.optimizer.forecast import Forecast, Traffic

NO_BASIS = "the plan was given and not solved, so nothing was predicted of it"
_LABELS = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "tokens_per_second": "tokens/s",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, observed and predicted; None is unknown. Seconds, or tokens per second."""

    name: str
    observed: float | None
    predicted: float | None

    @property
    def ratio(self) -> float | None:
        """Observed over predicted."""
        if self.observed is None or self.predicted is None:
            return None
        return self.observed / self.predicted

    @property
    def words(self) -> str:
        """``observed 30.10 ms, predicted 28.00 ms (x 1.08)``."""
        scale, unit = (1.0, "") if self.name == "tokens_per_second" else (1000.0, " ms")

        def value(number: float | None) -> str:
            return "unknown" if number is None else f"{scale * number:.2f}{unit}"

        ratio = "" if self.ratio is None else f" (x {self.ratio:.2f})"
        return f"observed {value(self.observed)}, predicted {value(self.predicted)}{ratio}"


def traffic_of(recent: Recent) -> Traffic | None:
    """The traffic that was observed; None where no session decoded. Without a first token, the prompt is the context."""
    steps = recent.decode
    if steps is None:
        return None
    prompt = recent.prompts.tokens_p50 if recent.prompts else round(steps.context_tokens_mean)
    return Traffic(
        sessions=steps.sessions_mean,
        in_flight=max(1, round(steps.in_flight_mean)),
        context_tokens=steps.context_tokens_mean,
        prompt_tokens=max(1, prompt),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Observed beside predicted.

    Attributes:
        recent: what was served lately.
        traffic: of it; None where no session decoded.
        expected: for that traffic, or where there is none for the load that the plan was made for.
        segments: of the plan.
        why: there is no expectation.
    """

    recent: Recent
    traffic: Traffic | None
    expected: Forecast | None
    segments: int
    why: str | None

    @property
    def figures(self) -> tuple[Figure, ...]:
        """TTFT, TPOT and throughput, then the decode step of each segment."""
        tokens, prompts, told = self.recent.tokens, self.recent.prompts, self.expected
        seen = self.recent.decode.hop_p50_seconds if self.recent.decode else ()
        return (
            Figure(
                "ttft", prompts.ttft_p50_seconds if prompts else None, told.ttft_seconds if told else None
            ),
            Figure("tpot", tokens.tpot_p50_seconds if tokens else None, told.tpot_seconds if told else None),
            Figure(
                "tokens_per_second",
                tokens.per_second if tokens else None,
                told.tokens_per_second if told else None,
            ),
            *(
                Figure(
                    f"segment[{hop}]",
                    seen[hop] if hop < len(seen) else None,
                    told.segment_seconds[hop] if told else None,
                )
                for hop in range(self.segments)
            ),
        )

    @property
    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "observed_traffic": self.traffic and self.traffic.model_dump(mode="json"),
            "predicted_traffic": self.expected and self.expected.traffic.model_dump(mode="json"),
            "no_prediction": self.why,
            "figures": {
                figure.name: {
                    "observed": figure.observed,
                    "predicted": figure.predicted,
                    "ratio": figure.ratio,
                }
                for figure in self.figures
            },
        }

    @property
    def lines(self) -> list[str]:
        """For a person: from end to end, after the traffic that it is of. Segments stand in the table of the plan."""
        window = f"{self.recent.window_seconds:.0f} s"
        if self.traffic is None:
            said = [f"no traffic in the last {window}"]
        else:
            said = [
                f"last {window}: {self.traffic.sessions:.1f} sessions per step, {self.traffic.in_flight} steps in "
                f"flight, {self.traffic.context_tokens:.0f} tokens of context, prompts of {self.traffic.prompt_tokens}"
            ]
        if self.why is not None:
            said.append(f"no prediction: {self.why}")
        if self.traffic is not None or self.expected is not None:
            said += [f"{_LABELS[f.name]}: {f.words}" for f in self.figures if f.name in _LABELS]
        return said

    def cells(self, hop: int) -> tuple[str, str]:
        """Milliseconds of a decode step of one segment, observed and predicted, for the table of the plan."""
        figure = self.figures[3 + hop]

        def cell(seconds: float | None) -> str:
            return "unknown" if seconds is None else f"{1000 * seconds:.2f}"

        return cell(figure.observed), cell(figure.predicted)
