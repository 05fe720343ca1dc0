"""Creates or updates the Space: the app, the library and the models that it serves."""

from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard

from classifier.errors import HubError, ModelError
from classifier.hub import REFUSED, advice
from classifier.runs import PULLED

SPACE = ["app.py", "requirements.txt", "LICENSE", "space/**/*.py", "classifier/**/*.py"]
SPACE += ["space/static/*", "classifier/reporting/templates/*"]
SPACE += ["model_card.md", "SECURITY.md", "examples/*", *(f"models/*/{pattern}" for pattern in PULLED)]
# Files that the README links to or shows
SPACE += ["CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"]
SPACE += ["docs/*", "report/report.*", "report/slides.pptx", "report/figures/*.png"]
ROOT = Path(__file__).resolve().parents[2]


def push_space(repo: str, models: list[str], *, private: bool = False) -> str:
    """Creates or updates the Space with app, library, embedded models and README, in one commit.

    Args:
        repo: `user/name` of the Space.
        models: Hub models to serve, `user/name` or `user/name@revision`; the embedded models if the list is empty.
        private: whether a new Space is private.

    Returns:
        Address of the commit.

    Raises:
        HubError: the Hub rejected the request or can't be reached.
        ModelError: the library is installed without the app.
    """
    if not (ROOT / "app.py").is_file():
        raise ModelError(f"no app.py in {ROOT}: run the command in a checkout of the project")
    files = sorted({path for pattern in SPACE for path in ROOT.glob(pattern) if path.is_file()})
    readme = SpaceCard.load(ROOT / "README.md")
    try:
        api = HfApi()
        if models:
            readme.data["models"] = [model.partition("@")[0] for model in models]
            readme.data["preload_from_hub"] = [_preload(api, model) for model in models]
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


def _preload(api: HfApi, model: str) -> str:
    """Entry of `preload_from_hub` in a Space's front matter: repository, inference files, and the commit if a revision
    is given. The files are downloaded when the Space is built.
    """
    repo, _, revision = model.partition("@")
    info = api.model_info(repo, revision=revision or None)
    files = [f.rfilename for f in info.siblings or [] if any(fnmatch(f.rfilename, pattern) for pattern in PULLED)]
    return " ".join([repo, ",".join(files), *([str(info.sha)] if revision else [])])
