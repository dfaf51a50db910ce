"""Train the emoji model, or a larger one, from the font alone.

    python examples/emoji/train.py --output out/trained                      # the committed model's recipe
    python examples/emoji/train.py --output out/large --names all --size 64 --width 512 --device cuda

Stop it and run the same command again: it goes on from the last checkpoint, with the same samples and noise as if it
had never stopped. The result is a folder like model/: draw with it, or compile it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from pictures import FontMissing, every_emoji_name, load_pictures, vocabulary
from safetensors.torch import save_file
from sampling import MAX_WORDS, PATCH, patchify, position_ids, split_words
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
TEXT_WIDTH = 128
HEAD_WIDTH = 64
EMPTY_PROMPT_RATE = 0.1
WARMUP_STEPS = 100
RESUMED = ("names", "size", "width", "double", "single", "batch", "rate", "steps", "seed")


class EmojiModel(nn.Module):
    """The transformer and the word table; both are trained."""

    def __init__(self, num_words: int, width: int, double: int, single: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words + 1, TEXT_WIDTH)
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=3 * PATCH * PATCH,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=width // HEAD_WIDTH,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(16, 24, 24),
        )

    def forward(self, latents: Tensor, time: Tensor, rows: Tensor, grid: int) -> Tensor:
        """latents [B, grid * grid, 48], time [B], rows [B, 4] -> velocity like latents."""
        hidden = self.words(rows)  # [B, 4, 128]
        img_ids, txt_ids = (torch.from_numpy(ids).to(latents) for ids in position_ids(grid))
        velocity: Tensor = self.transformer(
            hidden_states=latents,
            encoder_hidden_states=hidden,
            pooled_projections=hidden.mean(dim=1),
            timestep=time,
            img_ids=img_ids,
            txt_ids=txt_ids,
            return_dict=False,
        )[0]
        return velocity


def training_batch(
    pictures: Tensor, rows: Tensor, batch: int, seed: int, step: int
) -> tuple[Tensor, ...]:
    """(x_t, time, rows, target) of one step; a function of seed and step alone, whatever the device."""
    dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen = torch.randint(len(pictures), (batch,), generator=dice)
    clean = pictures[chosen]  # [B, tokens, 48]
    noise = torch.randn(clean.shape, generator=dice)
    time = torch.sigmoid(torch.randn(batch, generator=dice))
    named = torch.rand(batch, generator=dice) >= EMPTY_PROMPT_RATE
    t = time[:, None, None]
    return (1 - t) * clean + t * noise, time, rows[chosen] * named[:, None], noise - clean


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """A short linear warm-up, then a cosine to zero."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    return 0.5 * peak * (1 + math.cos(math.pi * step / num_steps))


def write_atomically(path: Path, write: Any) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    write(unfinished)
    os.replace(unfinished, path)


def export(folder: Path, model: EmojiModel, vocab: dict[str, int], names: list[str]) -> None:
    """The averaged weights in bfloat16, in the layout of model/."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).transformer.save_pretrained(folder / "transformer")
    table = {"weight": model.words.weight.detach().contiguous()}
    write_atomically(folder / "text_embedding.safetensors", lambda p: save_file(table, p))
    (folder / "vocab.json").write_text(json.dumps(vocab, indent=0, sort_keys=True))
    (folder / "prompts.txt").write_text("\n".join(names) + "\n")


class Training:
    """Everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, num_words: int) -> None:
        torch.manual_seed(args.seed)
        shape = (num_words, args.width, args.double, args.single)
        self.model = EmojiModel(*shape).to(args.device)
        self.average = EmojiModel(*shape).to(args.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.rate)
        self.step = 0
        self.settings = {name: str(getattr(args, name)) for name in RESUMED}

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "settings": self.settings,
        }
        write_atomically(path, lambda p: torch.save(state, p))

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = [k for k in RESUMED if state["settings"][k] != self.settings[k]]
        if changed:
            was = ", ".join(f"--{k} {state['settings'][k]}" for k in changed)
            sys.exit(f"{path} was trained with {was}; give the same, or another --output.")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        # The start counts less than the decay says, so that a short run is not an average of its first weights.
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def train(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    wanted = (
        every_emoji_name() if args.names == "all" else Path(args.names).read_text().splitlines()
    )
    names, images = load_pictures(wanted, args.size, args.font)
    vocab = vocabulary(names)
    rows = torch.zeros(len(names), MAX_WORDS, dtype=torch.long)
    for i, name in enumerate(names):
        for j, word in enumerate(split_words(name)):
            rows[i, j] = vocab[word]
    pictures = torch.from_numpy(patchify(images))  # [N, tokens, 48]
    grid = args.size // PATCH

    run = Training(args, len(vocab))
    if checkpoint.exists():
        run.resume(checkpoint)
        print(f"resuming at step {run.step}", flush=True)
    num_parameters = sum(p.numel() for p in run.model.transformer.parameters())
    print(
        f"{len(names)} pictures, {num_parameters / 1e6:.1f} M parameters, {args.device}", flush=True
    )

    stopped: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: stopped.append(number))
    began, losses = time.monotonic(), []
    while run.step < args.steps and not stopped:
        batch = training_batch(pictures, rows, args.batch, args.seed, run.step)
        noisy, when, prompt_rows, target = (tensor.to(args.device) for tensor in batch)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, args.rate)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            velocity = run.model(noisy, when, prompt_rows, grid)
        loss = nn.functional.mse_loss(velocity.float(), target)
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.step += 1
        run.update_average(0.999)
        losses.append(loss.detach())
        if run.step % args.log_every == 0 or run.step == args.steps:
            pace = (time.monotonic() - began) / len(losses)
            recent = torch.stack(losses[-args.log_every :]).mean().item()
            left = pace * (args.steps - run.step) / 60
            text = f"step {run.step}/{args.steps}  loss {recent:.4f}  {pace:.2f} s/step  {left:.0f} min left"
            print(text, flush=True)
        if run.step % args.save_every == 0:
            run.save(checkpoint)
    run.save(checkpoint)
    if stopped:
        print(f"stopped at step {run.step}; the same command goes on from {checkpoint}")
        return
    export(args.output, run.average.cpu(), vocab, names)
    print(f"wrote {args.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, required=True, help="a folder: the checkpoint, then the model")
    add("--names", default=str(HERE / "model" / "prompts.txt"), help="file of names, or: all")
    add("--size", type=int, default=32, help="of the pictures, in pixels; a multiple of 4")
    add("--width", type=int, default=256, help="of the transformer; a multiple of 64")
    add("--double", type=int, default=2, help="double-stream blocks")
    add("--single", type=int, default=4, help="single-stream blocks")
    add("--steps", type=int, default=20_000)
    add("--batch", type=int, default=64)
    add("--rate", type=float, default=1e-3, help="peak learning rate")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--font", type=Path, help="NotoColorEmoji.ttf, where it is not in its usual place")
    add("--save-every", type=int, default=500)
    add("--log-every", type=int, default=50)
    args = parser.parse_args()
    if args.size % PATCH or args.size <= 0:
        parser.error(f"--size {args.size} is not a multiple of {PATCH}")
    if args.width % HEAD_WIDTH or args.width <= 0:
        parser.error(f"--width {args.width} is not a multiple of {HEAD_WIDTH}")
    try:
        train(args)
    except FontMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
