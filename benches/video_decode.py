"""Times reading 8 evenly spread frames of a clip: `rescatter` beside PyAV and decord, one thread each.

Needs numpy, av, decord and the command ffmpeg; makes its own clips (340 x 256, H.264 with B-frames, 60 and 300 frames).

    cargo build --release --workspace --all-targets --features video
    python benches/video_decode.py [--clips 8] [--target target]

PyAV decodes from the start up to the last wanted frame, as most loaders on it do; decord seeks. Every figure is the best of
five rounds over the same files; frames per second of processor time stand beside those of the clock, because other work on the
machine hardly changes them.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import tempfile
import time

import av
import built
import decord
import numpy as np

FRAMES, ROUNDS = 8, 5


def make(path, frames):
    source = f"testsrc2=size=340x256:rate=30:duration={frames / 30}"
    noise = "noise=alls=12:allf=t"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-vf", noise, "-frames:v", str(frames),
         "-c:v", "libx264", "-preset", "medium", "-crf", "23", "-pix_fmt", "yuv420p", str(path)], check=True)


def spread(count):
    return [round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)]


def with_pyav(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        wanted = set(spread(stream.frames))
        frames = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(wanted):
                return frames


def with_decord(path):
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(spread(len(reader))).asnumpy()


def rate(read, paths):
    best, busy = float("inf"), float("inf")
    for _ in range(ROUNDS):
        start, spent = time.perf_counter(), time.process_time()
        for path in paths:
            read(path)
        best, busy = min(best, time.perf_counter() - start), min(busy, time.process_time() - spent)
    return FRAMES * len(paths) / best, FRAMES * len(paths) / busy


def ours(paths, target):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run([built.newest("video_decode", target), *map(str, paths)], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(output.stdout)["frames_per_second"], ROUNDS * FRAMES * len(paths) / busy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--target", default=os.environ.get("CARGO_TARGET_DIR", "target"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count in (60, 300):
            paths = [pathlib.Path(folder) / f"{count}_{i}.mp4" for i in range(args.clips)]
            for path in paths:
                make(path, count)
            sizes = np.mean([path.stat().st_size for path in paths]) / 1024
            figures = {"rescatter": ours(paths, args.target), "PyAV": rate(with_pyav, paths), "decord": rate(with_decord, paths)}
            line = ", ".join(f"{name} {clock:.0f} ({busy:.0f})" for name, (clock, busy) in figures.items())
            print(f"8 of {count} frames ({sizes:.0f} KiB a clip), frames/s (per second of processor time): {line}")


if __name__ == "__main__":
    main()
