"""Times reading and augmenting photographs: `rescatter` beside torchvision with PIL, on the same files.

    cargo build --release --workspace --all-targets
    python benches/data_path.py FOLDER_OF_JPEGS [--workers 0 1 2] [--target target]

Needs torch, torchvision and pillow. Decode, random resized crop to 224 px (0.08 to 1 of the area), mirroring, normalisation,
batches of 20; 0 workers: in the thread that asks. Best of five rounds over the files; the two sides by turns.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

import built
import torch
from PIL import Image
from torchvision import transforms

BATCH, ROUNDS = 20, 5


class Files(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def with_torchvision(paths, workers):
    loader = torch.utils.data.DataLoader(Files(paths), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    best = float("inf")
    for round in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in loader:
            pass
        if round > 0:  # the first round starts the workers
            best = min(best, time.perf_counter() - start)
    return len(paths) / best


def ours(list_file, workers, target):
    output = subprocess.run([built.newest("data_path", target), str(workers), list_file], check=True, capture_output=True, text=True)
    return json.loads(output.stdout)["images_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", default=os.environ.get("CARGO_TARGET_DIR", "target"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(str(path.resolve()) for path in pathlib.Path(args.folder).glob("*.jpg"))
    paths = paths[: len(paths) // BATCH * BATCH]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.writelines(f"{path} 0\n" for path in paths)
        listed.flush()
        for workers in args.workers:
            figures = {"rescatter": ours(listed.name, workers, args.target), "torchvision": with_torchvision(paths, workers)}
            line = ", ".join(f"{name} {rate:.0f}" for name, rate in figures.items())
            print(f"{len(paths)} images, {workers} workers, images/s: {line} ({figures['rescatter'] / figures['torchvision']:.2f})")


if __name__ == "__main__":
    main()
