"""Rescatter beside PyTorch on this machine, by turns: a table of medians and ratios. Needs torch, timm and torchvision.

    cargo build --release --workspace
    python benches/beside_torch.py [JOB …] [--rounds 5] [--device cpu|cuda:0] [--dtype f32] [--peer compile|channels-last …]

Every round runs ours, then each peer, so that a slower minute of the machine hits all of them. The same work on both sides: ViT-B/16
with adapters of 64, half of the tokens skip their MLPs, no auxiliary head, no dropout, AdamW in the steps.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
SEGMENT = ["configs/ade20k_upernet_vit_b16_dyt.yaml", "backbone.weights=null", "head.upernet.aux=null",
           "head.upernet.dropout=0", "tuning.adapter.dropout=0"]
CLASSIFY = ["configs/cifar100_vit_b16_dyt.yaml", "backbone.weights=null", "loss.complete=0", "loss.distill=0",
            "tuning.adapter.dropout=0"]
VIDEO = ["configs/k400_vit_b16_dyt.yaml", "backbone.weights=null", "--size", "224x224", "--batch", "1", "--kept", "0.5"]
DETECT = ["configs/coco_mask_rcnn_vit_b16_dyt.yaml", "backbone.weights=null", "tuning.adapter.bottleneck=64"]


def vit(side, batch):
    # The backbone alone gives all of its tokens, as the peer's does.
    changes = [f"backbone.pos_embed_grid=[{side // 16},{side // 16}]", "head.classifier.pool=mean"]
    return [*CLASSIFY, *changes, "--size", f"{side}x{side}", "--batch", str(batch), "--kept", "0.5"]


def upernet(channels, *rest):
    return [*SEGMENT, f"head.upernet.channels={channels}", "--size", "512x512", *rest]


# Our command, and where its report has the times.
JOBS = {
    "vit_224_dense": (vit(224, 8), ("backbone", "dense")),
    "vit_224": (vit(224, 8), ("backbone", "skipping")),
    "vit_512_dense": (vit(512, 1), ("backbone", "dense")),
    "vit_512": (vit(512, 1), ("backbone", "skipping")),
    "upernet_768": (upernet(768, "--batch", "1", "--kept", "0.5"), ("whole", "skipping")),
    "upernet_256": (upernet(256, "--batch", "1", "--kept", "0.5"), ("whole", "skipping")),
    "video_8x224": (VIDEO, ("whole", "skipping")),
    "detect_1024": ([*DETECT, "--size", "1024x1024", "--batch", "1", "--kept", "0.5"], ("whole", "skipping")),
    "classify_step": ([*CLASSIFY, "--size", "224x224", "--batch", "8", "--train"], ()),
    "upernet_256_step": (upernet(256, "--batch", "2", "--train"), ()),
    "upernet_768_step": (upernet(768, "--batch", "2", "--train"), ()),
}


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def without_data(folder):
    """The changes that let a config know its classes without the images, by its file."""
    pathlib.Path(folder, "fine_label_names.txt").write_text("".join(f"class {i}\n" for i in range(100)))
    for name in ("train.bin", "test.bin"):
        pathlib.Path(folder, name).write_bytes(bytes(3074 * 8))
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    annotations = pathlib.Path(folder, "instances.json")
    image = {"id": 1, "file_name": "none.jpg", "height": 480, "width": 640}
    annotations.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    return {
        CLASSIFY[0]: [f"data.{part}.cifar.root={folder}" for part in ("train", "val")],
        DETECT[0]: [f"data.{part}.coco.annotations={annotations}" for part in ("train", "val")],
    }


def ours(job, args, known):
    command, path = JOBS[job]
    precision = "bf16" if args.dtype == "bf16" else "f32"
    changes = [*known.get(command[0], []), f"device={args.device}", f"train.precision={precision}"]
    report = run([args.binary, "bench", *command, *changes, "--repeat", str(args.repeat), "--json"])
    memory = report.get("step_memory_bytes")
    for key in path:
        report = report[key]
    return report["median_ms"], memory and memory >> 20


def theirs(job, args, how):
    how = [] if how == "eager" else [f"--{how}"]
    device = args.device.split(":")[0]
    report = run([sys.executable, HERE / "torch_peer.py", job, "--device", device, "--dtype", args.dtype, "--threads",
                  str(args.threads), "--repeat", str(args.repeat), *how])
    return report["median_ms"], report["step_mib"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"some of {', '.join(JOBS)}; by default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--peer", nargs="*", default=[], choices=["compile", "channels-last"])
    parser.add_argument("--binary", default="target/release/rescatter")
    args = parser.parse_args()
    peers = ["eager", *args.peer]
    with tempfile.TemporaryDirectory() as folder:
        known = without_data(folder)
        print("| job | ours, ms | PyTorch, ms | PyTorch / ours | least – most | MiB over the start, ours / PyTorch |")
        print("|---|---|---|---|---|---|")
        for job in args.jobs or JOBS:
            rounds = [(ours(job, args, known), [theirs(job, args, how) for how in peers]) for _ in range(args.rounds)]
            mine = [time for (time, _), _ in rounds]
            # The best of the peers counts.
            best = min(range(len(peers)), key=lambda p: statistics.median(others[p][0] for _, others in rounds))
            their = [others[best][0] for _, others in rounds]
            ratios = [b / a for a, b in zip(mine, their)]
            memory = [(m, others[best][1]) for (_, m), others in rounds if m is not None]
            memory = f"{statistics.median(a for a, _ in memory):.0f} / {statistics.median(b for _, b in memory):.0f}" if memory else ""
            name = job if len(peers) == 1 else f"{job} ({peers[best]})"
            print(f"| {name} | {statistics.median(mine):.0f} | {statistics.median(their):.0f} | **{statistics.median(ratios):.2f}** | "
                  f"{min(ratios):.2f} – {max(ratios):.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
