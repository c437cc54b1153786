"""Our engines, transformers and llama.cpp on the default model, same threads, in turns in one run.

Parts, each of some minutes: ``unsplit`` (with the roofline), ``split``, ``batch``, ``prefill``, ``delay``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contenders import Alone, Contender, Field, LlamaCpp, Load, Served
from benchmarks.llama_build import FLAGS, build
from benchmarks.report import Row, Samples, table
from benchmarks.roofline import measure_apart, roof
from benchmarks.runtime import Note, parts, ratios
from splitinfer.segment_runtime.store.importer import import_model

PARTS = ("unsplit", "split", "batch", "prefill", "delay")
RIVALS = {"float32": ("F32",), "int8": ("Q8_0",), "int4": ("Q4_1", "Q4_0")}
"""The formats of llama.cpp with as many bits as ours; the targets are on the first."""
SPLITS = (2, 3)
BATCHES = (4, 8, 16)
DELAYS_MS = (5.0, 10.0, 20.0)

Job = Callable[[Contender], float]
Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Target:
    """What the ratio of the onnx engine to a rival is to be, for one session that decodes.

    Without a delay it is of speeds and a minimum; with one it is of times per token and a maximum.
    """

    dtype: str
    rival: str
    hosts: int
    delay_ms: float
    value: float


TARGETS = (
    Target("float32", "transformers", 0, 0.0, 2.0),
    Target("float32", "transformers", 2, 0.0, 1.6),
    Target("int4", "Q4_1", 0, 0.0, 1.0),
    Target("int4", "Q4_1", 2, 0.0, 1.3),
    Target("int4", "Q4_1", 2, 10.0, 0.75),
)


class Group:
    """Ours and its rivals in one format, cut into as many parts; all are up and take turns."""

    def __init__(self, dtype: str, hosts: int, delay_ms: float = 0.0) -> None:
        self.dtype, self.hosts, self.delay_ms = dtype, hosts, delay_ms
        self.ours: dict[str, Alone | Served] = {}
        self.rivals: dict[str, Contender] = {}

    @property
    def title(self) -> str:
        """What is the same for all of it."""
        cut = f"split in {self.hosts}" if self.hosts else "unsplit"
        return f"{self.dtype}, {cut}" + (f", {self.delay_ms:g} ms one way" if self.delay_ms else "")

    @contextlib.contextmanager
    def up(self, field: Field) -> Iterator[Group]:
        """Start all of them, and warm those that stay up between turns."""
        with contextlib.ExitStack() as stack:
            for engine in ("onnx", "torch") if self.dtype == "float32" else ("onnx",):
                started = field.ours(engine, self.dtype, self.hosts, self.delay_ms)
                self.ours[engine] = stack.enter_context(started)
            if self.dtype == "float32":
                self.rivals["transformers"] = stack.enter_context(field.transformers())
            for contender in (*self.ours.values(), *self.rivals.values()):
                contender.decode(1)
                contender.prefill()
            for kind in RIVALS[self.dtype]:
                rival = field.llama(kind, self.hosts, self.delay_ms)
                self.rivals[kind] = stack.enter_context(rival)
            yield self

    def turns(self, job: Job, repeats: int, note: Note) -> dict[str, list[float]]:
        """What each gave in each turn, by the key of `ours` or `rivals`."""
        everyone: dict[str, Contender] = {**self.ours, **self.rivals}
        found: dict[str, list[float]] = {name: [] for name in everyone}
        for turn in range(1, repeats + 1):
            for name, contender in everyone.items():
                found[name].append(job(contender))
            shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items())
            note(f"{self.title}, turn {turn}: {shown} tokens/s")
        return found

    def rows(self, found: Times, what: str, *, judged: bool = False) -> list[Row]:
        """Everyone's speed, then each of ours against each rival; ``judged``: against the targets too."""
        everyone: dict[str, Contender] = {**self.ours, **self.rivals}
        rows = [Row(f"{c.name}, {what}", Samples.of(found[k]).show("tokens/s")) for k, c in everyone.items()]
        for engine, ours in self.ours.items():
            for kind, rival in self.rivals.items():
                wanted = target(self, kind) if judged and engine == "onnx" else None
                rows.append(self._against(ours.name, rival.name, found[engine], found[kind], wanted))
        return rows

    def _against(
        self, ours: str, rival: str, speeds: Sequence[float], rivals: Sequence[float], wanted: float | None
    ) -> Row:
        if not self.delay_ms:
            return Row(f"{ours}, against {rival}", "speed", ratios(speeds, rivals), wanted)
        mean = Samples.of([1e3 / speed for speed in speeds]).show("ms")
        theirs = Samples.of([1e3 / speed for speed in rivals]).show("ms")
        name = f"{ours}, against {rival}"
        return Row(name, f"time per token {mean}; {theirs}", ratios(rivals, speeds), wanted, "lower")


def target(group: Group, rival: str) -> float | None:
    """The target of a comparison, if it has one."""
    key = (group.dtype, rival, group.hosts, group.delay_ms)
    return next((t.value for t in TARGETS if (t.dtype, t.rival, t.hosts, t.delay_ms) == key), None)


def one(contender: Contender) -> float:
    """A session that decodes alone."""
    return contender.decode(1)


def unsplit(field: Field, repeats: int, note: Note) -> Iterator[Row]:
    """One process, one session; what memory allows, and how much of a step is inside the kernels' library."""
    bandwidth = measure_apart(field.load.threads)
    reading: list[tuple[str, int, list[float]]] = []
    for dtype in RIVALS:
        with Group(dtype, 0).up(field) as group:
            found = group.turns(one, repeats, note)
            yield from group.rows(found, "1 session", judged=True)
            for key, contender in {**group.ours, **group.rivals}.items():
                if isinstance(contender, (Alone, LlamaCpp)):
                    reading.append((contender.name, contender.weight_bytes, found[key]))
            onnx = group.ours["onnx"]
            assert isinstance(onnx, Alone)
            kernels = Samples.of([100 * onnx.kernel_share() for _ in range(repeats)])
            yield Row(f"{onnx.name}: of a step, inside ONNX Runtime; the rest is glue", kernels.show("%"))
        # The roofline is what memory can do, so of several looks at a shared machine the best is nearest to it.
        bandwidth = bandwidth.better(measure_apart(field.load.threads))
    for name, weight_bytes, speeds in reading:
        yield roof(name, weight_bytes, bandwidth, speeds)


def split(field: Field, repeats: int, note: Note) -> Iterator[Row]:
    """Two and three processes, one session; where the time of a token goes in the chain of the onnx engine."""
    for hosts in SPLITS:
        for dtype in RIVALS:
            with Group(dtype, hosts).up(field) as group:
                onnx = group.ours["onnx"]
                assert isinstance(onnx, Served)
                steps = onnx.keep_parts()
                found = group.turns(one, repeats, note)
                yield from group.rows(found, "1 session", judged=True)
                if hosts == SPLITS[0]:
                    times = [1e3 / speed for speed in found["onnx"]]
                    for row in parts(steps, hosts, times):
                        yield Row(f"{onnx.name}, {row.name}", row.measured)


def batch(field: Field, repeats: int, note: Note) -> Iterator[Row]:
    """Several sessions together, unsplit and in two processes."""
    for hosts in (0, SPLITS[0]):
        for dtype in RIVALS:
            with Group(dtype, hosts).up(field) as group:
                for sessions in BATCHES:
                    found = group.turns(lambda c, n=sessions: c.decode(n), repeats, note)  # type: ignore[misc]
                    yield from group.rows(found, f"{sessions} sessions")


def prefill(field: Field, repeats: int, note: Note) -> Iterator[Row]:
    """One long prompt to its first token."""
    for hosts in (0, *SPLITS):
        for dtype in RIVALS:
            with Group(dtype, hosts).up(field) as group:
                found = group.turns(lambda c: c.prefill(), repeats, note)
                yield from group.rows(found, f"prompt of {field.load.long_prompt_tokens}")


def delay(field: Field, repeats: int, note: Note) -> Iterator[Row]:
    """Two processes, every link between them late: a chain waits N + 1 times per token, a hub 2 N times."""
    for delay_ms in DELAYS_MS:
        with Group("int4", SPLITS[0], delay_ms).up(field) as group:
            yield from group.rows(group.turns(one, repeats, note), f"{delay_ms:g} ms", judged=True)


MEASURES = {"unsplit": unsplit, "split": split, "batch": batch, "prefill": prefill, "delay": delay}


def run(threads: int, repeats: int, only: Sequence[str], note: Note) -> Iterator[str]:
    """The parts in ``only``, or all, as paragraphs of a report, each as soon as it is measured.

    Raises:
        CannotBuild: llama.cpp is not there and cannot be built.
        RivalFailed: a program of llama.cpp failed.
    """
    built = build(note)
    load = Load(threads=threads)
    field = Field(import_model("smollm2"), built, load)
    yield (
        f"llama.cpp of llama-cpp-python {built.version}, {' '.join(FLAGS)}. {threads} thread(s) in every process; "
        f"prompts of {load.prompt_tokens} tokens and {load.new_tokens} new ones unless said otherwise."
    )
    for part in only or PARTS:
        note(f"part {part}")
        measure = MEASURES[part]
        assert measure.__doc__ is not None
        yield table(f"{part}: {measure.__doc__}", list(measure(field, repeats, note)))
