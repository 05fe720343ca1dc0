"""Files that are moved together: all of them or none."""

from pathlib import Path

import pytest

from classifier.files import check_writable, move_files


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else "/" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A folder with new files, and one with old files of which two have the new ones' names."""
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, names in ((new, ("a.json", "deep/er/c.png", "z.md")), (old, ("a.json", "b.png", "z.md"))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{folder.name} {name}")
    return new, old


def test_files_replace_older_ones_and_others_stay(folders):
    new, old = folders
    move_files({new: old})
    assert contents(old) == {
        "a.json": "new a.json",
        "b.png": "old b.png",
        "deep": "/",
        "deep/er": "/",
        "deep/er/c.png": "new deep/er/c.png",
        "z.md": "new z.md",
    }


def test_a_file_that_is_removed_goes_with_the_step(folders):
    new, old = folders
    move_files({new: old}, remove=[old / "b.png", old / "absent.png"])
    assert "b.png" not in contents(old) and contents(old)["a.json"] == "new a.json"


def test_after_an_error_every_file_is_as_it_was(folders):
    """The last step fails: what is to be removed is a folder that can't be moved aside, as its new name is taken."""
    new, old = folders
    (old / "x").mkdir()
    (old / ".x.old").write_text("in the way")
    before = contents(old)
    with pytest.raises(NotADirectoryError):
        move_files({new: old}, remove=[old / "b.png", old / "x"])
    assert contents(old) == before


def test_a_folder_is_checked_without_being_made(tmp_path):
    check_writable(tmp_path / "a/b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(tmp_path / "file/b")
