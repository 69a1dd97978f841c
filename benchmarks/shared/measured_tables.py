"""The tables of measured figures in docs/benchmarks.md and other pages."""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.shared.measure import Row
from conversion.exporting.formats import FORMATS

MEASURED = Path(__file__).parents[2] / "docs/benchmarks"


def read(file: str) -> list[Row]:
    """The rows that a benchmark has written, and the machine that it ran on in each."""
    found = json.loads((MEASURED / f"{file}.json").read_text())
    return [row | {"machine": found["machine"]} for row in found["rows"]]


def in_words(what: str) -> str:
    """What is measured of a classifier."""
    return "training step" if what == "training" else what


def times(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} x"


def with_spread(ratio: Any) -> str:
    """Median, least and greatest of the rounds; nothing where nothing was compared."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})" if ratio else ""


def overview() -> list[Row]:
    """The first table of docs/benchmarks.md."""
    rows = [fcmae_step(row) for row in read("fcmae_step") if row["what"] == "step"]
    rows += map(views, read("views"))
    classifiers = [row | {"command": "classifier"} for row in read("classifier")]
    classifiers += [row | {"command": "classifier --cases base:16"} for row in read("classifier_base_16")]
    for what in ("inference", "training"):
        rows += [classifier(row) for row in classifiers if row["what"] == what]
    rows += [compiled(row) for row in read("compiled") if row["size"] == "tiny"]
    return rows + [pipeline(row) for row in read("pipelines") if row["size"] == "tiny"]


def classifier_v1() -> list[Row]:
    return [classifier(row | {"command": "classifier --blocks V1"}) for row in read("classifier_v1")]


def line(row: Row, what: str, per_second: float, compared: str, command: str, **rest: str) -> Row:
    """A row of the overview."""
    machine = row["machine"]
    found: Row = {"What": what, "Batch": row["batch"], "Images/s": f"{per_second:.1f}", "Times as fast as": compared}
    found |= {"Peak memory": rest.get("memory", ""), "Share of products": rest.get("share", "")}
    found["Instructions, torch"] = f"{machine['instructions']}, {'.'.join(machine['torch'].split()[1].split('.')[:2])}"
    return found | {"Command": f"`python -m benchmarks.{command}`"}


def fcmae_step(row: Row) -> Row:
    compared = f"{times(row['times masked-dense'])} masked-dense"
    rest = {"memory": f"{row['memory / masked-dense']:.2f} x", "share": f"{row['of the bound']:.2f}"}
    return line(row, f"FCMAE step, {row['size']}", row["images/s"], compared, "fcmae_step", **rest)


def views(row: Row) -> Row:
    compared = f"{times(row['of four masked-dense'])} four masked-dense, {times(row['of four packed'])} four of ours"
    rest = {"memory": f"{row['memory / masked-dense']:.2f} x one", "share": f"{row['of the bound']:.2f}"}
    return line(row, f"FCMAE step on four views, {row['size']}", row["views/s"], compared, "views", **rest)


def classifier(row: Row) -> Row:
    what = in_words(row["what"])
    compared = f"{times(row['times Transformers'])} Transformers, {times(row['times timm'])} timm"
    memory = row["memory / Transformers'"]
    rest = {"memory": f"{memory:.2f} x", "share": f"{row['of the bound']:.2f}"}
    return line(row, f"classifier, {what}, {row['size']}", row["images/s"], compared, row["command"], **rest)


def compiled(row: Row) -> Row:
    compared = f"{times(row['times Transformers compiled'])} Transformers compiled"
    return line(row, f"compiled, {row['what']}, {row['size']}", row["images/s"], compared, "compiled")


def pipeline(row: Row) -> Row:
    compared, what = f"{times(row['times as fast'])} before", f"`pipeline` after `register()`, {row['size']}"
    return line(row, what, row["images/s after"], compared, "pipelines")


def loaded(file: str = "loaded") -> list[Row]:
    """A row for each case and heap, a column for each number of busy processes."""
    found: dict[str, Row] = {}
    beside = {0: "alone", 1: "one busy process", 2: "two"}
    for row in read(file):
        what = in_words(row["what"])
        case = f"{row['size']}, batch {row['batch']}, {what}" + (", after training both" * (row["heap"] == "grown"))
        figure = f"{times(row['times Transformers'])}, {row['seconds']:.2f} s"
        found.setdefault(case, {"": case})[beside[row["busy processes"]]] = figure
    return list(found.values())


def half_precision(what: str, file: str = "half_precision") -> list[Row]:
    """A row for each case, a column for each contender: times Transformers' float32, and the error."""
    rows = [row for row in read(file) if row["what"] == what]
    found = []
    for (size, batch), each in groupby(rows, key=lambda row: (row["size"], row["batch"])):
        table: Row = {"Model, batch": f"{size}, {batch}"}
        for row in each:
            if row["contender"] != "Transformers, float32":
                error = "" if row["contender"] == "ours, float32" else f" ({row['error']})"
                table[row["contender"]] = f"{row['times Transformers, float32']['median']:.2f}{error}"
        found.append(table)
    return found


def half_precision_step() -> list[Row]:
    rows = [row for row in read("half_precision") if row["what"] == "FCMAE step"]
    column = "times ours, float32"
    return [{"Model, batch": f"{r['size']}, {r['batch']}", "times our float32": with_spread(r[column])} for r in rows]


def operations(what: str) -> list[Row]:
    """A row for each kind of operation in the steps of one sort, columns for each case and contender."""
    found: dict[str, Row] = {}
    for row in read("operations"):
        if row["what"] == what:
            each = found.setdefault(row["operations"], {"milliseconds": row["operations"]})
            for name in (column.removesuffix(", ms") for column in row if column.endswith(", ms")):
                each[f"{row['size']}, batch {row['batch']}, {name}"] = f"{row[f'{name}, ms']:,.0f}"
    return list(found.values())


def products() -> list[Row]:
    columns = ("up", "down", "back through down", "back through up")
    return [
        {name: row[name] for name in ("size", "channels", "rows")}
        | {name: times(row[f"{name}, times MKL"]) for name in columns}
        for row in read("products")
    ]


def segmentation() -> list[Row]:
    return [
        dense_row(
            f"{row['size']}, {row['head']}", row["times Transformers"], row["memory / Transformers'"], "Transformers"
        )
        for row in read("segmentation")
    ]


def detection() -> list[Row]:
    return [
        dense_row(row["size"], row["times torchvision"], row["memory / torchvision's"], "torchvision")
        for row in read("detection")
    ]


def dense_row(case: str, ratio: dict[str, float], memory: float, peer: str) -> Row:
    return {"Backbone": case, f"times as fast as {peer}": with_spread(ratio), "peak memory": f"{memory:.2f} x"}


def phases(model: str, parts: Mapping[str, Iterable[str]]) -> list[Row]:
    """The share of each part of a step: a row for each size. `parts`: the measured ones that each column adds up."""
    rows = [row for row in read("dense_phases") if row["model"] == model]
    found = []
    for size, each in groupby(rows, key=lambda row: row["size"]):
        shares = {row["part"]: row["share"] for row in each}
        sums = {column: sum(shares[part] for part in measured) for column, measured in parts.items()}
        found.append({"Backbone": size} | {column: f"{100 * share:.0f} %" for column, share in sums.items()})
    return found


PRODUCTS = {"products and convolutions alone": ["matrix products and convolutions alone"]}


def upernet_phases() -> list[Row]:
    parts = ("backbone", "pyramid", "heads", "loss")
    return phases("UPerNet", {part: [part] for part in parts} | PRODUCTS)


def mask_rcnn_phases() -> list[Row]:
    parts: dict[str, Iterable[str]] = {part: [part] for part in ("backbone", "pyramid", "region proposals")}
    parts["heads for boxes and masks, with losses"] = ["heads for boxes and masks", "losses of the heads"]
    return phases("Mask R-CNN", parts | PRODUCTS)


def convmae() -> list[Row]:
    """A row for each size and number of visible sets."""
    found = []
    for row in read("convmae"):
        sets = "1 set" if row["sets"] == 1 else f"{row['sets']} sets"
        shown: Row = {"Size": f"{row['size']}, {sets}", "Views/s": f"{row['views/s']:.1f}"}
        shown["Times the official arrangement"] = with_spread(row["times official"])
        shown["Times four passes"] = with_spread(row["times as many passes"])
        shown |= {"Memory": f"{row['memory / official']:.2f} x", "Share of products": f"{row['of the bound']:.2f}"}
        found.append(shown)
    return found


def exported_agreement() -> list[Row]:
    """A row for each file: the largest difference at any size of images, and the least agreement."""
    found = []
    for row in read("exported_agreement"):
        shown: Row = {"Model": row["size"], "File": f"{FORMATS[row['format']].runtime}, {row['dtype']}"}
        differences = [row[name] for name in row if name.startswith("difference, ")]
        agreement = [row[name] for name in row if name.startswith("top-1, ")]
        shown["Largest difference"] = max(differences, key=float)
        shown["Same class"] = f"{100 * min(agreement):.1f} %".replace("100.0", "100")
        found.append(shown | {"Size": f"{row['MB']:.1f} MB", "Export": f"{row['s to export']:.0f} s"})
    return found


def exported_speed() -> list[Row]:
    """A row for each contender: how many times as fast as Transformers' model, for each size and batch."""
    found: dict[str, Row] = {}
    for row in read("exported_speed"):
        shown = found.setdefault(row["contender"], {"Times as fast as Transformers": row["contender"]})
        shown[f"{row['size']}, {row['batch']}"] = with_spread(row["times Transformers"])
    return list(found.values())


def exported_accuracy() -> list[Row]:
    """A row for each file with the layers that it has by default: what it answers on held-out images."""
    rows = [row for row in read("exported_accuracy") if row["layers in float32"] == usual_layers(row)]
    return [
        {
            "Model": row["size"],
            "File": f"{FORMATS[row['format']].runtime}, {row['dtype']}",
            "Accuracy": f"{100 * row['accuracy']:.1f} %",
            "Of float32": f"{100 * row['accuracy of float32']:.1f} %",
            "Same class": f"{100 * row['same class']:.1f} %",
            "Size": f"{row['MB']:.1f} MB",
        }
        for row in rows
    ]


def usual_layers(row: Row) -> str:
    """The layers that a file has in float32 unless told otherwise."""
    return ", ".join(FORMATS[row["format"]].float_layers) if row["dtype"] == "int8" else ""


def exported_layers() -> list[Row]:
    """A row for each layer that int8 leaves in float32, of the smallest model."""
    found: dict[str, Row] = {}
    for row in read("exported_accuracy"):
        if row["dtype"] == "int8" and row["size"] == "atto":
            layers, runtime = row["layers in float32"], FORMATS[row["format"]].runtime
            shown = found.setdefault(layers, {"Layers in float32": f"`{layers}`" if layers else "none"})
            shown[f"{runtime}: accuracy"] = f"{100 * row['accuracy']:.1f} %"
            shown[f"{runtime}: same class"] = f"{100 * row['same class']:.1f} %"
            shown[f"{runtime}: size"] = f"{row['MB']:.1f} MB"
    return list(found.values())


def predictions() -> list[Row]:
    """A row for each script, size and number of processes: a folder of photographs beside the model alone."""
    return [
        {
            "Script": f"`{row['script']}.py`",
            "Model": row["size"],
            "Processes": row["processes"],
            "Workers of each": row["workers"],
            "Model alone, images/s": row["images/s alone"],
            "Images/s": row["images/s"],
            "Of the model alone": with_spread(row["times as fast as alone"]),
        }
        for row in [*read("predictions"), *read("predictions_processes")]
    ]


def predictions_memory() -> list[Row]:
    """A row for each tenth of a run: the memory of both scripts."""
    found: dict[int, Row] = {}
    for row in read("predictions_memory"):
        shown = found.setdefault(row["tenth of the run"], {"Tenth of the run": row["tenth of the run"]})
        shown[f"`{row['script']}.py`, MiB"] = row["process, MiB"]
        shown[f"`{row['script']}.py` with workers, MiB"] = row["with workers, MiB"]
    return list(found.values())


TABLES: dict[str, Callable[[], list[Row]]] = {
    "overview": overview,
    "classifier_v1": classifier_v1,
    "loaded": loaded,
    "loaded_single": lambda: loaded("loaded_single"),
    "half_precision_inference": lambda: half_precision("inference"),
    "half_precision_single": lambda: half_precision("inference", "half_precision_single"),
    "half_precision_training": lambda: half_precision("training"),
    "half_precision_step": half_precision_step,
    "operations": lambda: operations("training"),
    "operations_step": lambda: operations("step"),
    "products": products,
    "segmentation": segmentation,
    "detection": detection,
    "upernet_phases": upernet_phases,
    "mask_rcnn_phases": mask_rcnn_phases,
    "convmae": convmae,
    "exported_agreement": exported_agreement,
    "exported_speed": exported_speed,
    "exported_accuracy": exported_accuracy,
    "exported_layers": exported_layers,
    "predictions": predictions,
    "predictions_memory": predictions_memory,
}
