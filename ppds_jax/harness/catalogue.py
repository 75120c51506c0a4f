"""The table of methods, from the registries: `python -m` this module prints it.

What a method's row says stands in the docstring of its config and nowhere else.
"""

import inspect
import re

from ppds_jax import classifiers, generators


def table() -> str:
    """A Markdown table with a row for each method of the registries."""
    lines = ["| stage | method | what it does | privacy | reference |"]
    lines.append("|---|---|---|---|---|")
    stages = (("generation", generators.ALL), ("classification", classifiers.ALL))
    for stage, registry in stages:
        for cls in registry:
            text = inspect.getdoc(cls) or ""
            summary = " ".join(text.split("\n\n")[0].split())
            privacy = _sentence(_section(text, "Privacy"))
            papers = ", ".join(re.findall(r"arXiv\s+([\d.]+\d)", text))
            row = (stage, f"`{cls.__name__}`", summary, privacy, papers)
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _section(text: str, name: str) -> str:
    match = re.search(rf"\*\*{name}:\*\*(.*?)(\n\n|$)", text, re.S)
    return " ".join(match.group(1).split()) if match else ""


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.;,:])\s", text)[0].rstrip(".;,:")


if __name__ == "__main__":
    print(table())
