"""Which prefixes there are, and where texts part."""

from disk_records import NAMESPACE, key_of

from pippin.cli.cache_tree import Prefix, build_tree, cut_tree
from pippin.core.cache.disk.index import RecordRow


def row(number: int, parent: int | None, *, tokens: int, hits: int = 0) -> RecordRow:
    parent_hash = None if parent is None else key_of(parent).block_hash
    return RecordRow(
        number, NAMESPACE.digest, key_of(number), parent_hash, tokens, 10, 0.0, 0.0, hits
    )


def shape(prefixes: list[Prefix]) -> list[object]:
    return [(prefix.start, prefix.end, shape(prefix.branches)) for prefix in prefixes]


def test_texts_part_where_a_block_has_two_successors() -> None:
    rows = [
        row(0, None, tokens=32, hits=5),
        row(10, None, tokens=32),
        row(1, 0, tokens=64),
        row(2, 1, tokens=96, hits=1),
        row(3, 1, tokens=96, hits=2),
        row(4, 2, tokens=128),
        row(20, 19, tokens=640),  # what came before it was evicted
    ]
    roots = build_tree(rows, 32)
    parted: list[object] = [(64, 96, []), (64, 128, [])]
    assert shape(roots) == [(0, 64, parted), (608, 640, []), (0, 32, [])]
    assert [(root.num_records, root.num_bytes, root.hits) for root in roots] == [
        *((2, 20, 5), (1, 10, 0), (1, 10, 0))
    ]
    assert cut_tree(roots, 3) == 2
    assert shape(roots) == [(0, 64, []), (608, 640, []), (0, 32, [])]
    assert cut_tree(roots, 1) == 2


def test_a_tree_as_deep_as_a_text_is_long() -> None:
    rows = []
    for depth in range(5000):
        rows.append(row(depth, depth - 1 if depth else None, tokens=32 * (depth + 1)))
        rows.append(row(10_000 + depth, depth, tokens=32 * (depth + 2)))
    roots = build_tree(rows, 32)
    assert cut_tree(roots, 100) == 2 * 5000 - 1 - 100
