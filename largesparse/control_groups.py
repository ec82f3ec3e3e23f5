"""Control groups: what limits a container, a batch job or a service of systemd on Linux."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def own_groups(controller: str) -> list[Path]:
    """Return the folders of this process's control group and of the groups that it lies in.

    Parameters
    ----------
    controller : str
        "cpu" or "memory": version 1 has a tree of groups for each; version 2 has one for all.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = MOUNTS
        elif controller in controllers.split(","):
            base = MOUNTS / controllers if (MOUNTS / controllers).is_dir() else MOUNTS / controller
        else:
            continue
        group = base / path.lstrip("/")
        folders += [group, *(folder for folder in group.parents if folder.is_relative_to(base))]
    return folders


def read_numbers(file: Path) -> list[int]:
    """Return the whole numbers in a file; none where there is no such file, or it says "max"."""
    try:
        words = file.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
    return [int(word) for word in words if word.lstrip("-").isdigit()]
