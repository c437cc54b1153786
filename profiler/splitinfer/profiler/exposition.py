"""What an exporter's ``/metrics`` says, as samples. Pure.

Errors
------
ExpositionError           not Prometheus' text format, or not usable as such; the message says what is wrong with it
"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from splitinfer.profiler.answers import Sample
from splitinfer.profiler.series import AGENT_SERIES

_OURS = frozenset(series.name for series in AGENT_SERIES)


class ExpositionError(Exception):
    """What was exposed cannot be used."""


def parse_exposition(body: bytes, instance: str, at_seconds: float) -> tuple[Sample, ...]:
    """The series of an agent, as Prometheus would have them after a scrape.

    Args:
        body: of the answer.
        instance: the address that was asked; becomes the label of that name.
        at_seconds: when.

    Raises:
        ExpositionError: nothing of it can be used.
    """
    samples: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    try:
        for family in text_string_to_metric_families(body.decode("utf-8")):
            for found in family.samples:
                if found.name not in _OURS:
                    continue
                labels = {**found.labels, "instance": instance}
                key = (found.name, frozenset(labels.items()))
                if key in samples:
                    raise ExpositionError(f"{found.name} is there twice with the same labels")
                samples[key] = Sample(found.name, labels, float(found.value), at_seconds)
    except UnicodeDecodeError:
        raise ExpositionError("not UTF-8") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # The parser is written for what exporters say; of anything else it breaks in one of these ways.
        raise ExpositionError(f"not Prometheus' text format: {error}"[:200]) from None
    return tuple(samples.values())
