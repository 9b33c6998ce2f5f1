"""Times COCO evaluation: pycocotools beside `rescatter score coco`, on a made set of val2017's size.

Needs numpy and pycocotools. The set (5,000 images, 36,000 objects, 80 categories, 100 detections an image, boxes and
masks) takes about two minutes and 300 MB.

    python benches/coco_eval.py make DIR [--images 5000]
    python benches/coco_eval.py run DIR --binary target/release/rescatter [--iou-type bbox] [--repeat 3]

`run` prints the seconds of loading, of evaluate + accumulate and of everything, the processor's seconds over all threads (which
other work on the machine hardly changes), the ratios, and the largest difference of the 12 numbers. Times of `rescatter` are
the best of `--repeat`; pycocotools, which takes minutes, runs once.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import resource
import subprocess
import time

import numpy as np
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CATEGORIES = [c for c in range(1, 91) if c not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # 80, gaps as in COCO
OBJECTS_PER_IMAGE = 7.2
DETECTIONS_PER_IMAGE = 100


def outline(rng, box, points):
    """A star-shaped polygon that fills most of `box` (x, y, w, h)."""
    x, y, w, h = box
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    radius = rng.uniform(0.7, 1.0, points)
    xs = x + w / 2 * (1 + radius * np.cos(angle))
    ys = y + h / 2 * (1 + radius * np.sin(angle))
    return np.stack([xs, ys], 1).round(2).reshape(-1).tolist()


def draw_box(rng, width, height):
    """A box with COCO's spread of sizes: two fifths small, a third medium."""
    side = np.exp(rng.normal(4.0, 1.0))
    aspect = np.exp(rng.normal(0, 0.4))
    w, h = np.clip([side * aspect, side / aspect], 6, [0.95 * width, 0.95 * height])
    return [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]


def jitter(rng, box, width, height, amount):
    x, y, w, h = box
    dx, dy, dw, dh = rng.normal(0, amount, 4)
    w2, h2 = max(w * np.exp(dw), 2), max(h * np.exp(dh), 2)
    x2, y2 = np.clip(x + dx * w, 0, width - 2), np.clip(y + dy * h, 0, height - 2)
    return [x2, y2, min(w2, width - x2), min(h2, height - y2)]


def encode(polygon, width, height):
    rle = mask_codec.frPyObjects([polygon], height, width)[0]
    return {"size": [height, width], "counts": rle["counts"].decode()}


def uncompressed(polygon, width, height):
    mask = mask_codec.decode(mask_codec.frPyObjects([polygon], height, width)[0])
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [height, width], "counts": ([0] if flat[0] else []) + counts}


def make(folder, images):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    gt = {"images": [], "annotations": [], "categories": [{"id": c, "name": f"class{c}"} for c in CATEGORIES]}
    boxes_out, masks_out = [], []
    for number in range(images):
        width, height = (640, 480) if rng.random() < 0.7 else (480, 640)
        image = 100 + 7 * number
        gt["images"].append({"id": image, "width": width, "height": height, "file_name": f"{image:012}.jpg"})
        objects = []
        for _ in range(rng.poisson(OBJECTS_PER_IMAGE)):
            box, category = draw_box(rng, width, height), int(rng.choice(CATEGORIES))
            if objects and rng.random() < 0.5:
                category = objects[-1][1]  # objects of an image tend to be alike
            polygon = outline(rng, box, int(rng.integers(12, 40)))
            crowd = int(rng.random() < 0.012)
            rle = mask_codec.frPyObjects([polygon], height, width)[0]
            gt["annotations"].append({
                "id": len(gt["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": crowd,
                "area": float(mask_codec.area(rle)), "bbox": mask_codec.toBbox(rle).tolist(),
                "segmentation": uncompressed(polygon, width, height) if crowd else [polygon]})
            objects.append((box, category))
        for rank in range(DETECTIONS_PER_IMAGE):
            if objects and rank < 3 * len(objects):
                box, category = objects[rank % len(objects)]
                box = jitter(rng, box, width, height, 0.08 * (1 + rank // len(objects)))
                score = rng.beta(3, 2) / (1 + rank // len(objects))
                if rng.random() < 0.15:
                    category = int(rng.choice(CATEGORIES))
            else:
                box, score = draw_box(rng, width, height), rng.beta(1, 6)
                alike = objects and rng.random() < 0.6
                category = objects[int(rng.integers(len(objects)))][1] if alike else int(rng.choice(CATEGORIES))
            head = {"image_id": image, "category_id": category, "score": round(float(score), 5)}
            boxes_out.append(head | {"bbox": [round(float(v), 2) for v in box]})
            masks_out.append(head | {"segmentation": encode(outline(rng, box, 24), width, height)})
    for name, content in [("gt", gt), ("dt_bbox", boxes_out), ("dt_segm", masks_out)]:
        (folder / f"{name}.json").write_text(json.dumps(content))
    print(f"{images} images, {len(gt['annotations'])} objects, {len(boxes_out)} detections in {folder}")


def reference(folder, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        start, busy = time.perf_counter(), time.process_time()
        gt = COCO(folder / "gt.json")
        dt = gt.loadRes(str(folder / f"dt_{kind}.json"))
        loaded = time.perf_counter()
        evaluation = COCOeval(gt, dt, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        done = time.perf_counter()
        evaluation.summarize()
        end = time.perf_counter()
    busy = time.process_time() - busy
    return loaded - start, done - loaded, end - start, busy, evaluation.stats.tolist()


def children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ours(folder, kind, binary, repeat):
    command = [binary, "score", "coco", "--gt", folder / "gt.json", "--dt", folder / f"dt_{kind}.json",
               "--iou-type", kind, "--json"]
    best = None
    for _ in range(repeat):
        start, busy = time.perf_counter(), children()
        done = subprocess.run(command, check=True, capture_output=True, text=True,
                              env=os.environ | {"RESCATTER_LOG": "debug"})
        total = time.perf_counter() - start
        seconds = dict(re.findall(r"(\w+)_s=([0-9.e-]+)", done.stderr))
        if best is None or total < best[2]:
            best = (float(seconds["load"]), float(seconds["evaluate"]), total, children() - busy,
                    json.loads(done.stdout)["stats"])
    return best


def run(folder, binary, kinds, repeat):
    for kind in kinds:
        mine = ours(folder, kind, binary, repeat)
        theirs = reference(folder, kind)
        print(f"{kind:5} {'load':>10} {'evaluate':>10} {'all':>10} {'processor':>10}   seconds")
        for name, row in [("pycocotools", theirs), ("rescatter", mine)]:
            print(" " * 5, *(f"{value:10.2f}" for value in row[:4]), f"  {name}")
        print(" " * 5, *(f"{a / b:10.1f}" for a, b in zip(theirs[:4], mine[:4])), "  times faster")
        worst = max(abs(a - b) for a, b in zip(mine[4], theirs[4]))
        print(" " * 5, f"largest difference of the 12 numbers: {worst:.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("--images", type=int, default=5000)
    command = commands.add_parser("run")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("--binary", default="target/release/rescatter")
    command.add_argument("--iou-type", choices=["bbox", "segm"])
    command.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.images)
    else:
        run(args.folder, args.binary, [args.iou_type] if args.iou_type else ["bbox", "segm"], args.repeat)


if __name__ == "__main__":
    main()
