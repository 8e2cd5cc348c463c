"""An encoder for others to use: weights with all that they need, a model card, graphs that run without this project.

    python eval/export.py --model-obj runs/vit_small --output hub/vit_small --licence cc-by-4.0
    python eval/export.py --model-obj runs/vit_small --output hub/fast --folded --format safetensors,onnx,torch_export
    python eval/export.py --model-obj runs/vit_small/checkpoints/step-00001000 --output hub/early

``--output`` becomes a folder in the Hugging Face layout: model.safetensors, config.json, README.md (the card), and the
graphs asked for, each compared with the encoder before the command ends. docs/export.md shows how to load them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder would shadow the packages eval and datasets

from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch import nn  # noqa: E402

from dinov2 import cli, env  # noqa: E402
from dinov2.models import fold_encoder  # noqa: E402
from dinov2.models.export import CONFIG, FORMAT, WEIGHTS, load_export, save_pretrained  # noqa: E402
from dinov2.models.patch import ConvPatchEmbed  # noqa: E402
from dinov2.models.vit import VisionTransformer  # noqa: E402
from dinov2.models.zoo import ZOO  # noqa: E402
from dinov2.sensors import SENSORS  # noqa: E402
from dinov2.train import checkpoint  # noqa: E402
from dinov2.train.export import info_of, read_encoder  # noqa: E402
from eval.encoders import home_of, load_model, model_file, name_of  # noqa: E402
from eval.graphs import GRAPHS, TOLERANCE, difference, example, trace  # noqa: E402
from eval.model_card import CARD, write_card  # noqa: E402
from eval.released import is_released, released_parts  # noqa: E402
from eval.results import Row  # noqa: E402

ONNX_LIMIT = 2**31  # bytes, protobuf's
FORMATS = ("safetensors", *GRAPHS)


def source(obj: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The encoder that ``--model-obj`` names, its normalisation, and what is known of its training."""
    if is_released(obj):
        name, weights, _ = released_parts(obj)
        encoder = cast(Any, load_model(obj).network).encoder
        if not getattr(encoder, "config", None):
            raise ValueError(f"--model-obj {obj}: the architecture of {name} is its publisher's; export one of ours")
        return encoder, {}, {"released": name, "weights": Path(weights).name, "licence": ZOO[name].licence}
    path = model_file(obj)
    if checkpoint.is_checkpoint(path):
        encoder, rest = read_encoder(path)
        return encoder, rest["normalisation"], info_of(rest["step"], cast(DictConfig, OmegaConf.create(rest["config"])))
    encoder, header = load_export(path)
    return encoder, header["normalisation"], header["info"]


def channels_of(encoder: VisionTransformer, sensors: list[str]) -> list[int]:
    """The ids that a graph is traced with and an embedding folded for: those of the sensors, or all it knows."""
    kind = encoder.config["embed"]
    if kind == "conv":
        return list(range(cast(ConvPatchEmbed, encoder.patch_embed).in_chans))  # ids are not looked at
    if kind == "folded":
        return encoder.config["channels"]
    if not sensors:
        raise ValueError("the encoder has no normalisation that names sensors: say --sensors sentinel2_l2a ...")
    return sorted({number for name in sensors for number in SENSORS[name].channel_ids()})


def measured(obj: str, folders: list[Path]) -> list[Row]:
    """The rows of evaluations in these folders, and of those beside the run."""
    home = home_of(obj)
    files = [folder / "results.jsonl" for folder in ([home] if home else []) + folders]
    missing = next((file for file in files[bool(home) :] if not file.is_file()), None)
    if missing:
        raise ValueError(f"--results: there is no {missing}; give folders that eval/main.py wrote tables to")
    return [json.loads(line) for file in files if file.is_file() for line in file.read_text().splitlines()]


def make_room(folder: Path) -> None:
    """Remove the graphs of an earlier export, whose weights will go; ValueError where anybody's files would be lost."""
    config, files = folder / CONFIG, [WEIGHTS, CONFIG, CARD]
    taken = next((name for name in files if (folder / name).exists()), None)
    if taken and not (config.is_file() and json.loads(config.read_text()).get("format") == FORMAT):
        raise ValueError(f"--output {folder} has a {taken} that no export wrote and this one would replace")
    for name, _, _ in GRAPHS.values():
        (folder / name).unlink(missing_ok=True)


def check_graphs(encoder: VisionTransformer, args: argparse.Namespace) -> None:
    """ValueError for graphs that cannot be."""
    if args.size is not None and (args.size < 1 or args.size % encoder.patch_size):
        raise ValueError(f"--size {args.size}: it must be a multiple of the patch size {encoder.patch_size}")
    weight = sum(x.nbytes for x in encoder.state_dict().values())
    if "onnx" in args.format and weight > ONNX_LIMIT:
        raise ValueError(
            f"--format onnx holds up to 2 GiB, the weights are {weight / 2**30:.1f} GiB: take torch_export"
        )


def write_graphs(encoder: VisionTransformer, channels: list[int], args: argparse.Namespace, about: dict) -> None:
    """Each graph of ``--format``, compared with the encoder; ValueError where they differ."""
    size = args.size or encoder.config["img_size"]
    for kind in args.format:
        if kind not in GRAPHS:
            continue
        name, write, run = GRAPHS[kind]
        write(trace(encoder, channels, size), args.output / name, about)
        view = example(channels, size, batch=1)
        apart = difference(run(args.output / name, *view), encoder, view)
        print(f"{args.output / name}: differs by {apart:.1e} of the largest output", flush=True)
        if not apart <= TOLERANCE:
            raise ValueError(f"{args.output / name} differs from the encoder by {apart:.1e}: try it with --folded")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--model-obj", "--model_obj", required=True, help="a run, a checkpoint, an exported encoder, NAME@FILE")
    add("--output", "--output-dir", "--output_dir", type=Path, required=True, help="folder to write")
    add("--format", default="safetensors", help=f"any of {','.join(FORMATS)} (%(default)s, which is always written)")
    add("--folded", action="store_true", help="the patch embedding as products of its parameters, for fixed channels")
    add("--sensors", nargs="+", help="whose channels are folded and traced with (those it has normalisation for)")
    add("--size", type=int, help="pixels per side of a graph's images (those of its position grid)")
    add("--licence", "--license", help="of the weights, for the card: an identifier as cc-by-4.0")
    add("--results", nargs="+", type=Path, default=[], help="folders of eval/main.py's tables, for the card")
    return p


def main(argv: list[str]) -> None:
    """Entry point."""
    env.load()
    args = parser().parse_args(argv)
    args.format = [word for word in args.format.split(",") if word]
    unknown = next((word for word in args.format if word not in FORMATS), None)
    if unknown:
        raise ValueError(f"--format {unknown!r} is not one of {', '.join(FORMATS)}")
    encoder, normalisation, info = source(args.model_obj)
    graphs = any(kind in GRAPHS for kind in args.format)
    wants = args.folded or graphs
    if (args.sensors and not wants) or (args.size is not None and not graphs):
        raise ValueError("--sensors is for --folded and graphs, --size for graphs: --format names none")
    if wants and "embed" not in cast(VisionTransformer, encoder).config:
        raise ValueError(f"--model-obj {args.model_obj} has no patch embedding of ours: safetensors is its only format")
    image_encoder = cast(VisionTransformer, encoder)
    channels = channels_of(image_encoder, args.sensors or list(normalisation)) if wants else []
    if args.folded:
        encoder = image_encoder = fold_encoder(image_encoder, channels)
    if graphs:
        check_graphs(image_encoder, args)
    rows = measured(args.model_obj, args.results)
    make_room(args.output)
    save_pretrained(args.output, encoder, normalisation=normalisation, info=info)
    if wants:
        about = {"normalisation": normalisation, "channels": channels, "encoder": image_encoder.config}
        write_graphs(image_encoder, channels, args, about)
    licence = args.licence or info.get("licence", "unknown")
    write_card(args.output, name_of(args.model_obj), licence, rows)
    print(f"{args.output}: {', '.join(sorted(p.name for p in args.output.iterdir()))}")


if __name__ == "__main__":
    cli.run(main)
