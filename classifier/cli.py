"""Types of command line flags, whose errors argparse turns into one line."""

import argparse


def positive_int(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def positive_float(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """`--push_to_hub` and what goes with it, named as in `transformers.TrainingArguments`."""
    add = parser.add_argument
    add(
        "--push_to_hub",
        action="store_true",
        help="send the result to the Hub, with the token of hf auth login or HF_TOKEN",
    )
    add("--hub_model_id", metavar="USER/NAME", help="repository to send to (yours, named like the folder)")
    add("--hub_private_repo", action="store_true", help="create it private; one that exists stays as it is")
    add("--hub_revision", metavar="BRANCH", help="branch to send to, created where there is none (main)")
