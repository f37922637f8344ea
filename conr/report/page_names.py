"""The names of clusters on the page: one block of JSON, which its script shows wherever a cluster is.

Everything else on the page says "cluster 3", so that a name is changed in this block only.
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2.utils import htmlsafe_json_dumps

from conr.files import atomic_file

START, END = b'<script type="application/json" id="cluster-names">', b"</script>"


def names_block(names: Mapping[int, str]) -> str:
    """The block as HTML: number of a cluster → name. No name can end it, as `<`, `>` and `&` are escaped."""
    return f"{START.decode()}{htmlsafe_json_dumps(dict(names), sort_keys=True)}{END.decode()}"


def rename_in_page(path: Path, names: Mapping[int, str]) -> bool:
    """Give the clusters on a page that `conr.report.page.write_page` wrote these names, and no others.

    Returns:
        Whether the page has the block; without it (an older version wrote the page) nothing is changed.
    """
    before, start, rest = path.read_bytes().partition(START)
    after = rest.partition(END)[2]
    if not (start and after):
        return False
    with atomic_file(path) as temporary:
        temporary.write_bytes(before + names_block(names).encode() + after)
    return True
