"""Run directories inside a run directory, one per contender and seed, which share stages by symbolic links."""

import os
from collections.abc import Iterable

from llmrec import pipeline
from llmrec.atomic import MARK, is_ours, mark
from llmrec.rundir import RunDirectory


class Children:
    """The run directories `DIR/FOLDER/NAME/seed-N/` of the run directory DIR.

    Args:
        run: DIR.
        folder: FOLDER.
    """

    def __init__(self, run: RunDirectory, folder: str) -> None:
        self.run = run
        self.folder = folder
        self._opened: dict[tuple[str, int], RunDirectory] = {}

    def open(self, name: str, seed: int) -> RunDirectory:
        """Create the run directory of one contender and seed, or open it; it stays locked.

        Raises:
            UserError: a file or folder that llmrec did not make has the name of its folder or of one of its stages.
        """
        if (name, seed) not in self._opened:
            if self.run.main:
                with self.run.reporting():
                    self._claim()
            folder = self.run.path(self.folder) / name / f"seed-{seed}"
            child = self._opened[name, seed] = RunDirectory(folder, self.run.main, self.run.wait)
            child.claim(pipeline.NAMES)
        return self._opened[name, seed]

    def share(self, child: RunDirectory, stages: Iterable[str], source: RunDirectory | None = None) -> None:
        """Make the folders of these stages in `child` symbolic links to those of `source`, by default of DIR.

        The links are relative, so that a run directory can be moved or copied.
        """
        for stage in stages:
            link, made = child.path(stage), (source or self.run).path(stage).resolve()
            target = os.path.relpath(made, child.folder.resolve())
            if child.main and not link.exists():
                with child.reporting():
                    if link.is_symlink():  # a broken link: the run directory was moved
                        link.unlink()
                    link.symlink_to(target, target_is_directory=True)
        self.run.wait()

    def _claim(self) -> None:
        """Make and mark FOLDER. A folder from an earlier version has no mark yet and gets one."""
        self.run.claim(pipeline.NAMES)
        folder = self.run.path(self.folder)
        if not is_ours(folder, (MARK,)) and not folder.is_symlink() and any(folder.glob("*/seed-*/.lock")):
            (folder / MARK).touch()
        mark(folder)
