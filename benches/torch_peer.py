"""The jobs of `beside_torch.py` in PyTorch: timm's ViT with adapters and token dispatch, and what stands on it. Needs torch and timm,
for the detector torchvision.

    python benches/torch_peer.py JOB [--device cpu|cuda] [--dtype f32|tf32|bf16] [--compile] [--channels-last] [--repeat 5]

Prints one JSON line: milliseconds (median, fastest, slowest) and MiB: the peak over what was in use before the first pass.
"""

import argparse
import json
import resource
import statistics
import threading
import time

from collections import OrderedDict

import timm
import torch
import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    def __init__(self, dim, bottleneck=64, scale=0.1):
        super().__init__()
        self.down, self.up, self.scale = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim), scale

    def forward(self, x):
        return self.up(F.relu(self.down(x))) * self.scale


class Block(nn.Module):
    """A block of timm's ViT whose MLP half skips tokens, with an adapter beside it; `window`: patches along a window's side."""

    def __init__(self, block, dim, share, window=None):
        super().__init__()
        self.block, self.adapter, self.gate, self.share = block, Adapter(dim), nn.Linear(dim, 1), share
        self.window = window

    def attend(self, x):
        if self.window is None:
            return self.block.attn(x)
        images, tokens, dim = x.shape
        side, window = round(tokens**0.5), self.window
        count = -(-side // window)
        x = F.pad(x.view(images, side, side, dim), (0, 0, 0, count * window - side, 0, count * window - side))
        x = x.view(images, count, window, count, window, dim).transpose(2, 3).reshape(-1, window * window, dim)
        x = self.block.attn(x).view(images, count, count, window, window, dim).transpose(2, 3)
        return x.reshape(images, count * window, count * window, dim)[:, :side, :side].reshape(images, tokens, dim)

    def forward(self, x):
        block = self.block
        x = x + self.attend(block.norm1(x))
        beside = x + self.adapter(x)
        if self.training:
            noise = torch.distributions.Gumbel(torch.zeros((), device=x.device), 1.0)
            logits = self.gate(x)
            soft = torch.sigmoid((logits + noise.sample(logits.shape) - noise.sample(logits.shape)) / 5)
            mask = ((soft > 0.5).to(soft) - soft.detach()) + soft
            return beside + mask * block.mlp(block.norm2(x)), mask
        if self.share == 1:
            return beside + block.mlp(block.norm2(x)), None
        rows = x.flatten(0, 1)
        active = self.gate(rows)[:, 0].topk(round(len(rows) * self.share)).indices
        worked = block.mlp(block.norm2(rows[active]))
        return beside.flatten(0, 1).index_add(0, active, worked.to(beside.dtype)).view_as(x), None


class Backbone(nn.Module):
    def __init__(self, size, share):
        super().__init__()
        self.vit = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=0)
        self.vit.requires_grad_(False)
        self.blocks = nn.ModuleList(Block(block, 768, share) for block in self.vit.blocks)

    def forward(self, images):
        x, taps, masks = self.vit._pos_embed(self.vit.patch_embed(images)), [], []
        for i, block in enumerate(self.blocks):
            x, mask = block(x)
            masks.append(mask)
            if i in (3, 5, 7, 11):
                taps.append(x)
        return x, taps, masks


class Pyramid(nn.Module):
    """Maps at strides 4, 8, 16 and 32 from four blocks."""

    def __init__(self, dim=768):
        super().__init__()
        double = lambda: nn.ConvTranspose2d(dim, dim, 2, 2)
        self.first, self.second = nn.Sequential(double(), nn.GELU(), double()), double()

    def forward(self, taps, grid):
        maps = [t[:, 1:].transpose(1, 2).reshape(len(t), -1, *grid) for t in taps]
        return [self.first(maps[0]), self.second(maps[1]), maps[2], F.max_pool2d(maps[3], 2)]


def conv(inputs, outputs, kernel):
    layers = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """ViTDet's backbone (windows but in four blocks) with its simple pyramid, as torchvision's detectors take it."""

    out_channels = 256

    def __init__(self, size, share, dim=768):
        super().__init__()
        self.vit = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=0, class_token=False, global_pool="avg")
        self.vit.requires_grad_(False)
        blocks = enumerate(self.vit.blocks)
        self.blocks = nn.ModuleList(Block(b, dim, share, None if i in (2, 5, 8, 11) else 14) for i, b in blocks)
        double = lambda inputs, outputs: nn.ConvTranspose2d(inputs, outputs, 2, 2)
        four = nn.Sequential(double(dim, dim // 2), ChannelNorm(dim // 2), nn.GELU(), double(dim // 2, dim // 4))
        self.scales = nn.ModuleList([four, double(dim, dim // 2), nn.Identity(), nn.MaxPool2d(2)])
        out = lambda inputs: nn.Sequential(nn.Conv2d(inputs, 256, 1, bias=False), ChannelNorm(256),
                                           nn.Conv2d(256, 256, 3, padding=1, bias=False), ChannelNorm(256))
        self.outputs = nn.ModuleList(out(inputs) for inputs in (dim // 4, dim // 2, dim, dim))

    def forward(self, images):
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        for block in self.blocks:
            x, _ = block(x)
        x = x.transpose(1, 2).reshape(len(x), -1, images.shape[2] // 16, images.shape[3] // 16)
        maps = [out(scale(x)) for scale, out in zip(self.scales, self.outputs)]
        return OrderedDict(enumerate([*maps, F.max_pool2d(maps[3], 1, 2)]))


class Detector(nn.Module):
    def __init__(self, size, share):
        super().__init__()
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
        from torchvision.ops import MultiScaleRoIAlign

        anchors = AnchorGenerator(tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
        regions = lambda side: MultiScaleRoIAlign([0, 1, 2, 3], side, 0)
        self.model = MaskRCNN(Windows(size, share), 81, min_size=size, max_size=size, rpn_anchor_generator=anchors,
                              rpn_pre_nms_top_n_test=1000, box_roi_pool=regions(7), mask_roi_pool=regions(14),
                              box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=ChannelNorm),
                              mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=ChannelNorm))

    def forward(self, images):
        return self.model(list(images))


class UPerNet(nn.Module):
    def __init__(self, channels, classes=150, dim=768):
        super().__init__()
        self.pools = nn.ModuleList(conv(dim, channels, 1) for _ in (1, 2, 3, 6))
        self.bottleneck = conv(dim + 4 * channels, channels, 3)
        self.lateral = nn.ModuleList(conv(dim, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv(channels, channels, 3) for _ in range(3))
        self.fuse, self.classify = conv(4 * channels, channels, 3), nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        resize = lambda x, like: F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
        pooled = [resize(pool(F.adaptive_avg_pool2d(maps[3], s)), maps[3]) for pool, s in zip(self.pools, (1, 2, 3, 6))]
        levels = [f(x) for f, x in zip(self.lateral, maps)] + [self.bottleneck(torch.cat([maps[3], *pooled], 1))]
        for i in (3, 2, 1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1])
        smooth = [f(x) for f, x in zip(self.smooth, levels)] + [levels[3]]
        return self.classify(self.fuse(torch.cat([smooth[0], *(resize(x, smooth[0]) for x in smooth[1:])], 1)))


class Segmenter(nn.Module):
    def __init__(self, size, share, channels):
        super().__init__()
        self.size, self.backbone, self.pyramid, self.head = size, Backbone(size, share), Pyramid(), UPerNet(channels)

    def forward(self, images):
        _, taps, masks = self.backbone(images)
        scores = self.head(self.pyramid(taps, (self.size // 16, self.size // 16)))
        return F.interpolate(scores, size=(self.size, self.size), mode="bilinear"), masks


class Classifier(nn.Module):
    def __init__(self, size, share):
        super().__init__()
        self.backbone, self.head = Backbone(size, share), nn.Linear(768, 100)

    def forward(self, images):
        x, _, masks = self.backbone(images)
        return self.head(self.backbone.vit.norm(x)[:, 0]), masks


class Clip(nn.Module):
    """A learned query that attends once over the tokens of all frames of one clip."""

    def __init__(self, size, share, classes=400, dim=768, heads=12):
        super().__init__()
        self.backbone, self.heads, self.query = Backbone(size, share), heads, nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj, self.classify = nn.Linear(dim, dim), nn.Linear(dim, classes)

    def forward(self, frames):
        x, _, masks = self.backbone(frames)
        x = self.backbone.vit.norm(x).flatten(0, 1)[None]
        sides = zip((self.q, self.k, self.v), self.norms, (self.query, x, x))
        q, k, v = (layer(norm(t)).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer, norm, t in sides)
        pooled = F.scaled_dot_product_attention(q, k, v).flatten(1)
        return self.classify(self.proj(pooled)), masks


# Model, images a pass, side of the images; targets for training are made for what the model gives.
JOBS = {
    "vit_224_dense": (lambda: Backbone(224, 1), 8, 224),
    "vit_224": (lambda: Backbone(224, 0.5), 8, 224),
    "vit_512_dense": (lambda: Backbone(512, 1), 1, 512),
    "vit_512": (lambda: Backbone(512, 0.5), 1, 512),
    "upernet_768": (lambda: Segmenter(512, 0.5, 768), 1, 512),
    "upernet_256": (lambda: Segmenter(512, 0.5, 256), 1, 512),
    "video_8x224": (lambda: Clip(224, 0.5), 8, 224),
    "detect_1024": (lambda: Detector(1024, 0.5), 1, 1024),
    "classify_step": (lambda: Classifier(224, 0.5), 8, 224),
    "upernet_256_step": (lambda: Segmenter(512, 0.5, 256), 2, 512),
    "upernet_768_step": (lambda: Segmenter(512, 0.5, 768), 2, 512),
}


def step(model, images, autocast):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    targets = None

    def run():
        nonlocal targets
        with autocast():
            scores, masks = model(images)
            if targets is None:
                targets = torch.randint(0, scores.shape[1], (scores.shape[0], *scores.shape[2:]), device=images.device)
            share = torch.stack([mask[:, 1:].mean() for mask in masks]).mean()
            loss = F.cross_entropy(scores.float(), targets) + 2 * (share - 0.5) ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def inference(model, images, autocast):
    def run():
        with torch.inference_mode(), autocast():
            scores = model(images)[0]
            if isinstance(model, Segmenter):
                scores.argmax(1)

    return run


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.dtype == "tf32"
    make, batch, side = JOBS[args.job]
    form = torch.channels_last if args.channels_last else torch.contiguous_format
    model = make().to(args.device, memory_format=form)
    images = torch.randn(batch, 3, side, side, device=args.device).to(memory_format=form)
    autocast = lambda: torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16")
    train = args.job.endswith("_step")
    model.train(train)
    run = (step if train else inference)(torch.compile(model) if args.compile else model, images, autocast)

    cuda = args.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else lambda: None
    wait()
    before = torch.cuda.memory_allocated() if cuda else resident()
    peak, done = before, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    if not cuda:
        threading.Thread(target=watch, daemon=True).start()
    run()
    wait()
    milliseconds = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        run()
        wait()
        milliseconds.append(1000 * (time.perf_counter() - start))
    done.set()
    peak = torch.cuda.max_memory_allocated() if cuda else peak
    print(json.dumps({
        "median_ms": statistics.median(milliseconds), "fastest_ms": min(milliseconds), "slowest_ms": max(milliseconds),
        "step_mib": (peak - before) >> 20,
    }))


if __name__ == "__main__":
    main()
