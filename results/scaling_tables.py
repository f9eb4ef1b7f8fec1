"""Tables of several processes: what was measured on CPUs, and what that means for many GPUs."""

from benchmarks.exchange import Measured, lbgat_exchanges, predict
from results.benchmark_tables import Link, markdown_table
from results.records import Records

# Assumed, not measured: a collective over NVLink or InfiniBand, and each GPU's part of the network between machines.
LATENCY = 30e-6
BANDWIDTH = {8: 300e9, 64: 40e9, 512: 40e9}
STEP_ON_H100 = "results/train-step-h100/wrn-34-10-batch128.json"


def processes_table(records: Records, link: Link) -> str:
    """Every file of benchmarks/exchange.py under results/, with the predictions beside the measurements."""
    rows = []
    for path, figures in records.json_files("*/processes.json").items():
        predicted = {entry["processes"]: entry["predicted"] for entry in figures["predictions"]}
        for row in figures["rows"]:
            step, local = row["lbgat, synchronised"], row.get("lbgat, local")
            several = row["processes"] > 1
            rows.append([
                link(path.parent, path.parent.name),
                f"{row['processes']}",
                f"{row['threads']}",
                f"{step['seconds']:.2f}",
                f"{predicted[row['processes']]:.2f}" if row["threads"] == 1 else "",
                f"{step['exchange_seconds'] / step['seconds']:.0%}" if several else "",
                f"{local['seconds']:.2f}" if local else "",
                f"{row['at, local']['seconds']:.2f}",
                f"{row['at, ddp']['seconds']:.2f}" if several else "",
            ])  # fmt: skip
    head = [
        "result", "processes", "threads of each", "LBGAT6 step, s", "predicted, s", "in exchanges",
        "local BatchNorm, s", "AT step, s", "AT step by DDP, s",
    ]  # fmt: skip
    return markdown_table(head, rows)


def gpus_table(records: Records, link: Link) -> str:
    """LBGAT6 of WRN-34-10 on 8, 64 and 512 GPUs, from one H100's measured step."""
    (figures,) = [f for path, f in records.json_files("**/*.json").items() if str(path).endswith(STEP_ON_H100)]
    batch, rows = figures["arguments"]["batch_size"], []
    image_seconds = 1 / figures["images_per_second"]
    for gpus, bandwidth in BANDWIDTH.items():
        for total in sorted({batch, batch * gpus}):
            cells = [f"{gpus}", f"{total:,}"]
            for synchronised in (True, False):
                exchanges, size = lbgat_exchanges("wrn-34-10", "resnet18-guide", 100, synchronised)
                m = Measured(image_seconds, gpus, exchanges, size, LATENCY, bandwidth)
                seconds, share = predict(m, gpus, total)
                cells += [f"{total / seconds:,.0f}", f"{share:.0%}"]
            rows.append(cells)
    head = ["GPUs", "batch", "images/s, synchronised", "in exchanges", "images/s, local", "in exchanges"]
    return markdown_table(head, rows)
