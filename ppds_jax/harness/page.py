"""What the pages of all reports share: the frame, tables, figures, numbers as text."""

import base64
import html
import json
import math
from typing import Any

from ppds_jax.harness.run import Row


def page(title: str, body: str) -> bytes:
    """A whole HTML file, with its style."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style></head><body><main>
{body}
</main></body></html>
""".encode()


def figure(png: bytes, text: str) -> str:
    """A picture inside the page, with its caption."""
    return (
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{text}</figcaption></figure>'
    )


def html_table(head: list[str], lines: list[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>"
        f"{''.join(lines)}</tbody></table></div>"
    )


def split_notes(notes: str) -> list[str]:
    return [note for note in notes.split("; ") if note]


def numbered(rows: list[Row]) -> dict[str, int]:
    every = [note for row in rows for note in split_notes(row["notes"])]
    return {note: i for i, note in enumerate(dict.fromkeys(every), 1)}


def provenance(env: Any, config: Any) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in env["versions"].items())
    return (
        f"<pre>{html.escape(env['command'])}</pre><p>Python {env['python']}, "
        f"{html.escape(versions)}; revision {env['revision']}; "
        f"{html.escape(env['platform'])}, {env['cores']} cores, {env['num_devices']} "
        f"devices ({html.escape(', '.join(env['devices']))}).</p><details><summary>The "
        f"whole configuration</summary><pre>{html.escape(json.dumps(config, indent=1))}"
        "</pre></details>"
    )


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def epsilon_text(value: float | str) -> str:
    """Three digits, rounded up: a privacy loss must not look smaller than it is."""
    if isinstance(value, str) or value == 0:
        return value if isinstance(value, str) else "0"
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale - 1e-9) / scale:.10g}"


def interval(row: Row, name: str) -> str:
    return f"{row[name]:.3f} [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]"


_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 30px; margin: 0 0 12px; } h2 { font-size: 20px; margin: 40px 0 8px; }
.asked { color: var(--soft); } .answer { font-size: 18px; }
figure { margin: 12px 0 0; } figure img { max-width: 100%; height: auto; }
figcaption, p, ol { max-width: 800px; }
figcaption { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; width: 100%; }
th { text-align: left; border-bottom: 2px solid var(--line); }
th, td { padding: 4px 8px 4px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); }
.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
.good { color: #1a7f37; } .bad { color: #cf222e; font-weight: 700; }
pre { background: #f6f8fa; padding: 12px; overflow-x: auto; white-space: pre-wrap;
  word-break: break-word; font-size: 13px; }
"""
