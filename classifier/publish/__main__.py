"""Command line: sends a model, or a page that uses it, to the Hub.

    python -m classifier.publish push runs/cnn user/cifar10-cnn
    python -m classifier.publish onnx runs/cnn --precision fp32 fp16 int8
    python -m classifier.publish space user/cifar10 --models user/cifar10-cnn,user/cifar10-vit
    python -m classifier.publish static user/cifar10-offline --model runs/vit

The token is the one of `hf auth login` or HF_TOKEN. A push that failed can be given again: files that have arrived are
not sent twice.
"""

import argparse
from pathlib import Path

from classifier import errors
from classifier.publish.space import push_space
from classifier.publish.upload import push

PRECISIONS = "fp32", "fp16", "int8"  # the keys of onnx_exports.FILES, whose imports take seconds


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser(
        "push",
        help="send a finished model folder",
        description="Completes a model folder, proves that it loads elsewhere, and sends it.",
    )
    model.add_argument("folder", type=Path, help="what train.py or finetune_vit.py wrote")
    model.add_argument("repo", nargs="?", help="user/name (yours, named like the folder)")
    model.add_argument("--revision", metavar="BRANCH", help="created where there is none (main)")
    model.add_argument("--dataset", help="Hub id or folder whose validation images prove parity (run.json's)")
    space = commands.add_parser(
        "space", help="create or update the Space", description="Creates or updates the Space in one commit."
    )
    space.add_argument("repo", help="user/name of the Space")
    space.add_argument(
        "--models", default="", metavar="IDS", help="user/name[@revision],… to serve (the embedded ones)"
    )
    onnx = commands.add_parser(
        "onnx",
        help="write a model as ONNX, and measure what that loses",
        description="Writes a model folder's onnx/: files for other engines, and exports.json with what each loses.",
    )
    onnx.add_argument("folder", type=Path, help="what train.py or finetune_vit.py wrote")
    onnx.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="of the files, one each (%(default)s)"
    )
    onnx.add_argument("--dataset", help="Hub id or folder whose validation images are labelled (run.json's)")
    static = commands.add_parser(
        "static",
        help="create or update a static Space, which classifies in the browser",
        description="Writes a site that runs a model in the visitor's browser, and sends it as a static Space.",
    )
    static.add_argument("repo", nargs="?", help="user/name of the Space (write the site, send nothing)")
    static.add_argument("--model", required=True, help="folder, or user/name[@revision]")
    static.add_argument("--output_dir", type=Path, default="runs/site", help="folder for the site (%(default)s)")
    for command in (model, space, static):
        command.add_argument("--private", action="store_true", help="create it private; one that exists stays as it is")
    return parser.parse_args()


def main() -> None:
    """Push a model, or the Space."""
    args = parse_args()
    if args.command == "push":
        print(push(args.folder, args.repo, private=args.private, revision=args.revision, dataset=args.dataset))
    elif args.command == "onnx":
        from classifier.publish import onnx_exports  # here, because its imports take seconds

        print(onnx_exports.describe(onnx_exports.write_exports(args.folder, args.precision, args.dataset)))
    elif args.command == "static":
        from classifier.publish import static_site

        files = static_site.write_site(args.model, args.output_dir, args.repo)
        if args.repo:
            print(static_site.push_site(args.output_dir, files, args.repo, private=args.private))
        else:
            print(f"{args.output_dir} has the site: look at it by python -m http.server --directory {args.output_dir}")
    else:
        print(push_space(args.repo, [name for name in args.models.split(",") if name], private=args.private))


def cli() -> None:
    """The command classifier-publish: `main`, with an error of the user in one line."""
    errors.run(main)


if __name__ == "__main__":
    cli()
