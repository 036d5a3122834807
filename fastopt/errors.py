"""Internal. fastopt's own errors, and the command that mends an installation."""

import json
from pathlib import Path


class BackendUnavailable(RuntimeError):
    """A backend is needed that is not here: the message says what is missing and the command that installs it."""


def install_command(extra: str = "", options: str = "") -> str:
    """The command that installs fastopt again, with an extra, from where this installation came.

    No package index is asked for it: a clone is installed in place, everything else from the address that its
    installer wrote down. Where none is known, the command is one to be given in a clone.
    """
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution

    extra = f"[{extra}]" if extra else ""
    root = Path(__file__).resolve().parents[1]
    where = ""
    if (root / "setup.py").exists():
        wanted = ["-e", f"{root}{extra}"]
    else:
        try:
            origin = json.loads(distribution("fastopt").read_text("direct_url.json") or "")
        except (PackageNotFoundError, ValueError):
            wanted, where = ["-e", f".{extra}"], " (in a clone of fastopt)"
        else:
            source = origin.get("vcs_info")
            url = f"{source['vcs']}+{origin['url']}@{source['commit_id']}" if source else origin["url"]
            wanted = [f"fastopt{extra} @ {url}"]
    return shlex.join(["pip", "install", *options.split(), *wanted]) + where
