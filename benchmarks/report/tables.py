"""Tables of a result file, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.suite.results import Row
from ifdd import IFDDConfig

OURS = ("triton", "native", "ifdd")
RIVALS = ("original", "original+compile", "rewrite", "rewrite+compile", "shifts+compile")
LABELS = {
    "original": "original",
    "original+compile": "original, torch.compile",
    "rewrite": "library rewrite",
    "rewrite+compile": "rewrite, torch.compile",
    "shifts+compile": "27 shifts, torch.compile",
}
#: Of the whole network in deployment runtimes, the lines of their table.
DEPLOYED = {
    "ifdd": "this library",
    "original": "original, eager",
    "original+onnxruntime": "ONNX Runtime, the original exported",
    "original+openvino": "OpenVINO, the original exported",
    "ifdd+onnxruntime": "ONNX Runtime, our export",
    "ifdd+openvino": "OpenVINO, our export",
    "products": "plain products of the same FLOPs",
}
NAMES = {
    "issm": "splitting (ISSM and norms)",
    "pool_tokens": "pooling of q, k, v, all blocks",
    "pooled_attention": "attention, all blocks",
    "ladm": "splitting and lifting (LADM)",
    "model": "whole network",
}
HEADLINE = (
    ("issm", "inference"),
    ("pool_tokens", "training"),
    ("pooled_attention", "training"),
    ("model", "training"),
)
PASSES = ("inference", "training")
BLOCKS = sum(IFDDConfig().stage_depths)


@dataclass(frozen=True)
class Quantity:
    """Something that several contenders did: seconds, peak bytes and error of each."""

    case: str
    label: str
    batch: int
    precision: str
    pass_name: str
    rows: dict[str, Row]

    @property
    def ours(self) -> Row | None:
        """The fastest of this library's."""
        mine = [self.rows[name] for name in OURS if name in self.rows]
        return min(mine, key=lambda row: float(row["median_s"]), default=None)

    def times_ours(self, name: str) -> float | None:
        """How many times ours the time of a contender is.

        Both come as ratios to the original of their own rounds: a case may be timed twice, with and without
        the compiled contenders, and the machine may have been slower in between.
        """
        row, ours = self.rows.get(name), self.ours
        if row is None or ours is None:
            return None
        if "speedup" in row and "speedup" in ours:
            return float(ours["speedup"] / row["speedup"])
        return float(row["median_s"] / ours["median_s"])


def quantities(rows: Iterable[Row]) -> list[Quantity]:
    """Measurements by what they measured, in the file's order.

    On a GPU the replay of a graph counts, and the launches of a contender that no graph can hold.
    """
    found: dict[tuple[str, str, int, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.get("kind", "time") != "time":
            continue
        key = (row["case"], row["label"], row["batch"], row["precision"], row["pass"])
        group = found.setdefault(key, {})
        before = group.get(row["contender"])
        if before is None or row["mode"] == "graph" or before["mode"] == "eager":
            group[row["contender"]] = row
    return [Quantity(*key, group) for key, group in found.items()]


def sum_of_blocks(
    found: Iterable[Quantity], case: str, batch: int, precision: str, pass_name: str
) -> Quantity | None:
    """One op over all blocks of the network, of the contenders that have every block."""
    parts = [
        q for q in found if (q.case, q.batch, q.precision, q.pass_name) == (case, batch, precision, pass_name)
    ]
    # A run that was cut off must not pass for the whole network.
    count = sum(int(next(iter(part.rows.values()))["count"]) for part in parts)
    if count != BLOCKS:
        return None
    names = set.intersection(*(set(part.rows) for part in parts))
    sums = {name: _sum([part.rows[name] for part in parts]) for name in names}
    return Quantity(case, f"{count} blocks", batch, precision, pass_name, sums) if sums else None


def _sum(rows: list[Row]) -> Row:
    total = {
        field: sum(row[field] * row["count"] for row in rows) for field in ("median_s", "bytes", "flops")
    }
    if all("speedup" in row for row in rows):
        original = sum(row["median_s"] * row["speedup"] * row["count"] for row in rows)
        total["speedup"] = original / total["median_s"]
    worst = {field: max(row[field] for row in rows) for field in ("peak_bytes", "error")}
    return {**total, **worst, "contender": rows[0]["contender"]}


def bars(found: list[Quantity]) -> list[Quantity]:
    """The first table of a reader: modules, ops over all blocks, and the whole network, in float32."""
    wanted: list[Quantity | None] = []
    for precision in ("fp32", "tf32", "bf16"):
        for case in NAMES:
            for batch in (1, 2, 4, 16):
                for pass_name in PASSES:
                    if case in ("pool_tokens", "pooled_attention"):
                        wanted.append(sum_of_blocks(found, case, batch, precision, pass_name))
                    else:
                        wanted += [
                            q
                            for q in found
                            if (q.case, q.batch, q.precision, q.pass_name)
                            == (case, batch, precision, pass_name)
                            and q.label in ("8 frames", "network", "mvit_xs 16x224x224")
                        ]
    return [q for q in wanted if q is not None and q.ours is not None and len(q.rows) > 1]


def seconds(value: float) -> str:
    """With a unit that suits its size."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def _markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def _beside(quantity: Quantity, name: str) -> str:
    """A rival's time and how many times ours it is."""
    factor = quantity.times_ours(name)
    return "" if factor is None else f"{seconds(quantity.rows[name]['median_s'])} ({factor:.2g}x)"


def _what(quantity: Quantity) -> list[str]:
    q = quantity
    return [NAMES.get(q.case, q.case), q.pass_name, str(q.batch), q.precision]


def summary(rows: list[Row]) -> str:
    """Times of the bars beside each rival; the figure in brackets is the rival's time over ours."""
    found = bars(quantities(rows))
    rivals = [name for name in RIVALS if any(name in q.rows for q in found)]
    head = ["", "pass", "clips", "precision", "this library", *(LABELS[name] for name in rivals)]
    lines = [
        [*_what(q), seconds(q.ours["median_s"]), *(_beside(q, name) for name in rivals)]
        for q in found
        if q.ours is not None
    ]
    return _markdown(head, lines)


def fewest_and_most(found: list[Quantity]) -> list[Quantity]:
    """Of each case, precision and pass those of the fewest and of the most clips."""
    batches: dict[tuple[str, str, str], set[int]] = {}
    for q in found:
        batches.setdefault((q.case, q.precision, q.pass_name), set()).add(q.batch)

    def at_an_end(q: Quantity) -> bool:
        of_case = batches[q.case, q.precision, q.pass_name]
        return q.batch in (min(of_case), max(of_case))

    return [q for q in found if at_an_end(q)]


def headline(rows: list[Row]) -> str:
    """The four rows of the README: one clip in float32."""
    bar = {(q.case, q.pass_name): q for q in bars(quantities(rows)) if (q.precision, q.batch) == ("fp32", 1)}
    found = [bar[key] for key in HEADLINE if key in bar]
    shown = ("original", "original+compile", "rewrite")
    rivals = [name for name in shown if any(name in q.rows for q in found)]
    lines = []
    for q in found:
        assert q.ours is not None
        lines.append(
            [
                f"{NAMES[q.case]}, {q.pass_name}",
                seconds(q.ours["median_s"]),
                *(_beside(q, name) for name in rivals),
            ]
        )
    return _markdown(["one clip, float32", "this library", *(LABELS[name] for name in rivals)], lines)


def case_table(case: str) -> Callable[[list[Row]], str]:
    """All measurements of one case, one line per shape, precision and pass."""

    def table(rows: list[Row]) -> str:
        found = [q for q in quantities(rows) if q.case == case and q.ours is not None]
        batches = sorted({q.batch for q in found})
        for batch in batches:
            for precision in ("fp32", "tf32", "bf16", "fp16"):
                found += [
                    total
                    for pass_name in PASSES
                    if case in ("pool_tokens", "pooled_attention")
                    and (total := sum_of_blocks(found, case, batch, precision, pass_name))
                    and total.ours is not None
                ]
        rivals = [name for name in RIVALS if any(name in q.rows for q in found)]
        head = ["shape", "clips", "precision", "pass", "this library"]
        head += [*(LABELS[name] for name in rivals), "of roofline"]
        lines = []
        for q in found:
            assert q.ours is not None
            roof = f"{q.ours['roofline']:.0%}" if "roofline" in q.ours else ""
            times = [seconds(q.ours["median_s"]), *(_beside(q, name) for name in rivals)]
            lines.append([q.label, str(q.batch), q.precision, q.pass_name, *times, roof])
        return _markdown(head, lines)

    return table


def deployment(rows: list[Row]) -> str:
    """One line per runtime of exported networks, a column per batch and precision; empty without any.

    Names what was skipped, with the reason.
    """
    rivals = {name for name in DEPLOYED if "+" in name}
    found = [
        q
        for q in quantities(rows)
        if (q.case, q.pass_name) == ("model", "inference") and q.ours is not None and rivals & set(q.rows)
    ]
    if not found:
        return ""
    head = ["whole network, inference"]
    head += [f"{q.batch} clip{'s' if q.batch > 1 else ''}, {q.precision}" for q in found]
    lines = []
    for name, label in DEPLOYED.items():
        cells = [
            seconds(q.rows[name]["median_s"]) if name in OURS and name in q.rows else _beside(q, name)
            for q in found
        ]
        if any(cells):
            lines.append([label, *cells])
    left_out = {
        (row["contender"], row["precision"]): row["reason"]
        for row in rows
        if row.get("kind") == "skipped" and row.get("contender") in rivals
    }
    reasons = "; ".join(f"{name} in {precision} ({why})" for (name, precision), why in left_out.items())
    return _markdown(head, lines) + (f"\n\nNot measured: {reasons}." if reasons else "")


def accuracy(rows: list[Row]) -> str:
    """Error against float64 relative to the largest value, and in units of the eager float32 original's."""
    lines = []
    for q in quantities(rows):
        ours = q.ours
        if ours is None or q.pass_name != "inference" or q.batch != 1:
            continue
        original = q.rows.get("original")
        unit = ours.get("error_in_eager_fp32")
        theirs = f"{original['error']:.1e}" if original else ""
        relative = f"{unit:.3g}" if unit is not None and unit == unit else ""
        lines.append([q.case, q.label, q.precision, f"{ours['error']:.1e}", theirs, relative])
    return _markdown(["case", "shape", "precision", "error", "original's", "in eager float32 errors"], lines)


def memory(rows: list[Row]) -> str:
    """Peak memory of the bars beyond the inputs, in MB (10^6 bytes)."""
    found = bars(quantities(rows))
    names = [name for name in RIVALS if any(name in q.rows for q in found)]
    head = ["", "pass", "clips", "precision", "this library", *(LABELS[name] for name in names)]

    def size(row: Row | None) -> str:
        return "" if row is None else f"{row['peak_bytes'] * 1e-6:.4g}"

    return _markdown(head, [[*_what(q), size(q.ours), *(size(q.rows.get(n)) for n in names)] for q in found])


def origin(rows: list[Row], path: str) -> str:
    """Where the numbers come from: one sentence for below a table."""
    rows = [row for row in rows if row.get("kind", "time") == "time"]
    row = rows[-1]
    loads = [r["load"] for r in rows if r.get("load") is not None]
    parts = [
        str(row["device"]),
        f"{row['threads']} threads" if row.get("driver") is None else f"driver {row['driver']}",
        f"torch {row['torch']}",
        f"Triton {row['triton']}" if row.get("triton") and row.get("driver") else "",
        f"commit {', '.join(dict.fromkeys(str(r['commit']) for r in rows))}",
        f"{row['clock']} time" if row["clock"] != "cuda" else "CUDA events",
        f"load average up to {max(loads):.1f}" if loads else "",
    ]
    return f"({', '.join(part for part in parts if part)}; medians of interleaved rounds; raw file `{path}`.)"
