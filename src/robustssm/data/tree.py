"""A tree of many small files, on disk or inside a .zip archive, read in the same way."""

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from robustssm.core.errors import CorruptFile


class Tree(ABC):
    """Files below a root, named by their path from there, with "/" between parts."""

    path: Path
    """The directory or the archive."""

    @abstractmethod
    def folders(self) -> Mapping[str, list[str]]:
        """Each folder that holds files to the sorted names of these."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            CorruptFile: If there is no such file, or it is damaged.
        """

    def describe(self, name: str) -> str:
        """How messages call a file."""
        return f"{self.path}/{name}"

    def _lacks(self, name: str) -> CorruptFile:
        return CorruptFile(f"{self.path} must hold {name}; it does not. Unpack or fetch it again.")


class Directory(Tree):
    """A tree on disk."""

    def __init__(self, path: Path):
        """`path` is the root."""
        self.path = path

    def folders(self) -> Mapping[str, list[str]]:
        """See `Tree.folders`."""
        return {
            Path(folder).relative_to(self.path).as_posix(): sorted(files)
            for folder, _, files in os.walk(self.path)
            if files
        }

    def read(self, name: str) -> bytes:
        """See `Tree.read`."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise self._lacks(name) from None


class ZipTree(Tree):
    """A tree inside a .zip archive, which is not unpacked."""

    def __init__(self, path: Path, root: str):
        """`root` is the folder in the archive at `path` that names start from.

        Raises:
            CorruptFile: If it is no whole .zip archive.
        """
        self.path, self._root = path, root
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise CorruptFile(
                f"{path} must be a whole .zip archive; {error}. Fetch it again."
            ) from None

    def folders(self) -> Mapping[str, list[str]]:
        """See `Tree.folders`."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._archive.namelist()):
            folder, _, file = name.rpartition("/")
            if file and f"{folder}/".startswith(f"{self._root}/"):
                found.setdefault(folder[len(self._root) + 1 :] or ".", []).append(file)
        return found

    def read(self, name: str) -> bytes:
        """See `Tree.read`."""
        try:
            return self._archive.read(f"{self._root}/{name}")
        except KeyError:
            raise self._lacks(f"{self._root}/{name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorruptFile(
                f"{self.describe(name)} must be whole; it is damaged ({error}). "
                "Fetch the archive again."
            ) from None

    def describe(self, name: str) -> str:
        """See `Tree.describe`."""
        return f"{self._root}/{name} in {self.path}"
