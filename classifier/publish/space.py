"""Creates or updates the Space: the app, the library and the models that it serves."""

from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard

from classifier.errors import HubError
from classifier.hub import PULLED, REFUSED, advice

SPACE = ["app.py", "requirements.txt", "LICENSE", "space/**/*.py", "classifier/**/*.py"]
SPACE += ["classifier/reporting/templates/*"]
SPACE += ["model_card.md", "SECURITY.md", "examples/*", *(f"models/*/{pattern}" for pattern in PULLED)]
# What the README links to and shows
SPACE += ["docs/*", "report/report.*", "report/slides.pptx", "report/figures/*.png"]
ROOT = Path(__file__).resolve().parents[2]


def push_space(repo: str, models: list[str], *, private: bool = False) -> str:
    """Creates or updates the Space: app, library, embedded models and README, in one commit. Gives its address.

    Args:
        repo: `user/name` of the Space.
        models: Hub models to serve, `user/name` or `user/name@revision`; the embedded ones if there are none.
        private: whether a Space that is created is private.

    Raises:
        HubError: the Hub did not take it.
    """
    files = sorted({path for pattern in SPACE for path in ROOT.glob(pattern) if path.is_file()})
    readme = SpaceCard.load(ROOT / "README.md")
    try:
        api = HfApi()
        if models:
            readme.data["models"] = [model.partition("@")[0] for model in models]
            readme.data["preload_from_hub"] = [_preload(api, *model.partition("@")[::2]) for model in models]
        additions = {path.relative_to(ROOT).as_posix(): path for path in files} | {"README.md": str(readme).encode()}
        api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        if models:
            api.add_space_variable(repo, "MODELS", ",".join(models))
        sent = api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in additions.items()],
            repo_type="space",
            commit_message=f"Serve {', '.join(models) or 'the embedded models'}",
        )
    except REFUSED as error:
        raise HubError(f"the Hub did not take the Space {repo} ({advice(error)}): give the command again") from error
    return sent.commit_url


def _preload(api: HfApi, repo: str, revision: str) -> str:
    """The line of a Space's front matter that has the model's inference files fetched when the Space is built."""
    found = api.model_info(repo, revision=revision or None)
    files = [f.rfilename for f in found.siblings if any(fnmatch(f.rfilename, pattern) for pattern in PULLED)]
    return " ".join([repo, ",".join(files), *([found.sha] if revision else [])])
