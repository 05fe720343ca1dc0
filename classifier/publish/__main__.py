"""Command line: sends a model, or the app as a Space, to the Hub.

    python -m classifier.publish push runs/cnn user/cifar10-cnn
    python -m classifier.publish space user/cifar10 --models user/cifar10-cnn,user/cifar10-vit

The token is the one of `hf auth login` or HF_TOKEN. A push that failed can be given again: files that have arrived are
not sent twice.
"""

import argparse
from pathlib import Path

from classifier import errors
from classifier.publish.space import push_space
from classifier.publish.upload import push


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
    for command in (model, space):
        command.add_argument("--private", action="store_true", help="create it private; one that exists stays as it is")
    return parser.parse_args()


def main() -> None:
    """Push a model, or the Space."""
    args = parse_args()
    if args.command == "push":
        print(push(args.folder, args.repo, private=args.private, revision=args.revision, dataset=args.dataset))
    else:
        print(push_space(args.repo, [name for name in args.models.split(",") if name], private=args.private))


def cli() -> None:
    """The command classifier-publish: `main`, with an error of the user in one line."""
    errors.run(main)


if __name__ == "__main__":
    cli()
